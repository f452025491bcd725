"""The command line. Each command is a dataclass: its fields are the flags, and calling it runs it."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import metadata
from pathlib import Path

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError
from cyclopts.help import DefaultFormatter
from cyclopts.help.specs import AsteriskColumn, DescriptionColumn, NameColumn, NameRenderer

from ..errors import UserError
from .run_file import read_run_file
from .terminal import use_any_terminal, warn
from .train import Detailed, Faithful, Join, Mix, Student, Teacher
from .train_sd import Prepare, TadSd, Tsd
from .upscale import Evaluate, Upscale
from .weights import Convert, Download, Models

NAME = "onestep-sr"
WIDTH_OF_NAMES = 30  # fits the longest flag and leaves enough of 80 columns for the help


def version() -> str:
    """The version of the installed package, or of a checkout that is not installed."""
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        [found] = re.findall(r'^version = "(.+)"', project, re.MULTILINE)
        return found


app = App(
    name=NAME,
    help="Upscale images with one pass of a distilled diffusion model per tile.",
    help_format="plaintext",
    help_formatter=DefaultFormatter(
        column_specs=(
            AsteriskColumn,
            NameColumn.copy(renderer=NameRenderer(WIDTH_OF_NAMES), max_width=WIDTH_OF_NAMES),
            DescriptionColumn,
        )
    ),
    version=version,
    # If an option is given twice, the last value is used. Lists have no `--empty-` form.
    default_parameter=Parameter(allow_repeating=True, negative_iterable=""),
    result_action=["call_if_callable", "return_int_as_exit_code_else_zero"],
    # `main` turns errors into sentences.
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
train = App(
    name="train",
    help="Train a teacher, distil it into a one-step student, or train a one-step LoRA.",
    config=read_run_file,
    sort_key=6,
)
app.command(Upscale, usage=f"Usage: {NAME} upscale IN... --output PATH [OPTIONS]", sort_key=0)
for position, command in enumerate((Models, Download, Convert, Evaluate, Prepare), start=1):
    app.command(command, sort_key=position)
app.command(train)
for position, command in enumerate((Faithful, Detailed, Join, Teacher, Student, Mix, Tsd, TadSd)):
    train.command(command, sort_key=position)


def main() -> None:
    """Run the command line. An error that a user can act on is shown as one sentence on stderr.

    Exit codes: 0 for success; 1 for a UserError or files that failed; 2 for options that are unknown, missing or have
    an invalid value; 130 for Ctrl-C, and 128 and the number for a signal that asks the process to end.
    """
    use_any_terminal()
    end_like_ctrl_c()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers shows one for each text encoder it opens
    try:
        sys.exit(app(sys.argv[1:]))
    except UserError as error:
        warn(f"{NAME}: {error}")
        sys.exit(1)
    except CycloptsError as error:
        warn(f"{NAME}: {sentence(error)}")
        sys.exit(2)
    except OSError as error:
        warn(f"{NAME}: {system_sentence(error)}")
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        warn("Stopped: finished files are kept, and none is partial.")
        sys.exit(128 + (stopped.args[0] if stopped.args else signal.SIGINT))


def system_sentence(error: OSError) -> str:
    """What the operating system refused, and where, as one sentence."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"The system refused an operation ({reason}): check the paths and the free space."
    return f"{os.fsdecode(error.filename)} cannot be used ({reason}): check the path and its permissions."


def end_like_ctrl_c() -> None:
    """Have the signals of `kill`, of a shutdown and of a closed terminal raise KeyboardInterrupt, so that files in work
    are removed. A signal that is ignored, as under nohup, stays so."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def sentence(error: CycloptsError) -> str:
    """An error in the options as one sentence that refers to the help."""
    match error:
        case MissingArgumentError(argument=argument) if argument is not None:
            name = argument.name if argument.index is None else argument.name.lstrip("-").upper()
            text = f"{error.keyword} needs a value" if error.keyword else f"{name} is missing"
        case UnusedCliTokensError(unused_tokens=[token, *_]):
            text = f"{token!r} is an unexpected argument"
        case _:
            # cyclopts adds the possible choices, or a suggestion, as a second sentence.
            first, *others = re.split(r"[.?]\s+(?=[A-Z])", " ".join(str(error).split()).rstrip(".?"))
            text = ", ".join([first, *(other[0].lower() + other[1:] for other in others)])
    command = " ".join([NAME, *(error.command_chain or ())])
    return f"{text} (see {command} --help)."
