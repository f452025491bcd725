"""The flags of each command: names, defaults and help, as shown by `--help`."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from cyclopts import App
from onestep_sr.sr_models.commands.cli import app, main
from onestep_sr.sr_models.commands.train_sd import Prepare
from onestep_sr.sr_models.commands.training_options import StudentWeightOptions
from onestep_sr.sr_models.commands.upscale import Upscale
from onestep_sr.sr_models.jobs.job import FileOptions
from onestep_sr.sr_models.jobs.model_choice import ModelChoice
from onestep_sr.sr_models.training.pixel_objectives import StudentWeights
from onestep_sr.sr_models.training.sd.prepare import PrepareConfig
from rich.console import Console

# Flags are a promise: scripts and run.toml files carry them. `=` is a default, `!` marks what must be given.
TRAINING = """--output! -o --config --steps=30000 --batch=16 --accumulate=1 --ema=0.999 --precision=auto --seed=0
    --workers=1 --save-every=500 --validation"""
LORA = """--base! --rank=64 --rank-vae=64 --start --teacher --gradient-checkpointing=True --no-gradient-checkpointing
    --fp8=False --no-fp8 --shard=False --no-shard --best=psnr --lpips --musiq"""
WEIGHTS = "--regression-weight=1.0 --score-weight=1.0 --adversarial-weight=0.02"
FLAGS = {
    "upscale": """--in! --output! -o --scale=4.0 --longest --shortest --width --height --megapixels --fit
        --model=bundled --recipe=auto --autoencoder --device=auto --dtype=auto
        --base --lora --embeddings --prompt --captions --tagger --strength=1.0 --offload --compile --tile=0 --overlap=-1
        --color=auto --detail --wrap=none --seed=0 --format=same --quality=95 --overwrite --compare
        --strip-metadata --batch=0 --memory=0 --spill --ray""",
    "models": "--folder",
    "download": "--name --to --sha256 --hash=True --no-hash",
    "convert": "--lora! --output! -o --embeddings",
    "evaluate": "--folder! --model=bundled --detail --autoencoder --device=auto --dtype=auto --perceptual --json",
    "prepare": """--folder! --output! -o --base! --crop=512 --crops=4 --shard=64 --seed=0 --captions=True --no-captions
        --embeddings --null-embeddings --lr --targets --device=auto --precision=no --workers=2""",
    "train faithful": f"""--data! {TRAINING.replace("=30000", "=24000")} --warmup=200 --best=psnr --lpips --musiq
        --crop=192 --clean=0.5 --plain=0.02 --grey=0.05 --shrunk=0.25
        --channels=64 --blocks=16 --learning-rate=0.0005 --start --teacher --imitation=0.7""",
    "train detailed": f"""--data! --start! --perceptual! {TRAINING.replace("=30000", "=20000").replace("=16", "=8")}
        --warmup=200 --best=psnr --lpips --musiq --crop=192 --learning-rate=0.0001 --discriminator-learning-rate=0.0001
        --clean=0.5 --plain=0.02 --grey=0.05 --shrunk=0.25 --dists-every=2 --discriminator
        --pixel-weight=1.0 --coarse-weight=2.0 --lpips-weight=0.5 --dists-weight=0.5
        --adversarial-weight=0.05 --grid-weight=1.0 --chroma-weight=2.0""",
    "train join": "--faithful! --detailed! --output! -o --detail=1.0 --card",
    "train teacher": f"--data! --crop=128 {TRAINING} --learning-rate=0.0005 --init --regression",
    "train student": f"--data! --crop=128 {TRAINING} --teacher! --learning-rate=5e-05 {WEIGHTS}",
    "train mix": "--student! --teacher! --output! -o --share=0.8",
    "train tsd": f"""--data! {LORA} {TRAINING.replace("=30000", "=100000").replace("=16", "=2")} --warmup=3000
        --learning-rate=5e-06 --auxiliary-learning-rate=1e-06 --guidance=7.5 --early-steps=50000 --matching=score
        --rank-auxiliary=64""",
    "train tad-sd": f"""--data! {LORA} {TRAINING.replace("=16", "=2")} --warmup=1000 --learning-rate=5e-06
        --discriminator-learning-rate=5e-05 --auxiliary-learning-rate=1e-06 {WEIGHTS} --rank-auxiliary=0
        --tagger""",
}


def help_of(command: str, columns: int) -> str:
    console = Console(file=StringIO(), width=columns)
    app([*command.split(), "--help"], console=console)
    return console.file.getvalue()


def commands(of: App = app, before: str = "") -> set[str]:
    """The names of all commands, with the group that they are in."""
    names: set[str] = set()
    for name in (name for name in of if not name.startswith("-")):
        names |= commands(of[name], f"{before}{name} ") or {before + name}
    return names


def test_the_table_is_complete() -> None:
    assert commands() == set(FLAGS)


@pytest.mark.parametrize("command", FLAGS)
def test_flags_keep_their_names_and_defaults(command: str) -> None:
    found = set()
    for line in help_of(command, 400).splitlines():
        if row := re.match(r"│ ([* ])  ((?:[A-Z]+ )?-.*?)  +(\S.*?) *│$", line):
            required, names, description = row.groups()
            first, *others = (name for name in names.split() if name.startswith("-"))
            default = re.search(r"\[default: (.*)\]", description)
            found |= {first + ("!" if required == "*" else "") + (f"={default[1]}" if default else ""), *others}
            assert re.match(r"[^\[]+\.", description), f"{first} has no help"
        elif wrapped := re.match(r"│ {6}(--\S+)", line):
            found.add(wrapped[1])
    assert found == set(FLAGS[command].split())


@pytest.mark.parametrize("command", ["", "train", *FLAGS])
def test_help_fits_in_80_columns_and_breaks_no_name(command: str) -> None:
    text = help_of(command, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    names = {re.split("[=!]", flag)[0] for flag in FLAGS.get(command, "").split()}
    assert names <= set(text.split())


# A mistake in the words after the command, and what the sentence must say.
MISTAKES = {
    "no input": ("upscale -o out", "IN is missing"),
    "no output": ("upscale a.png", "--output is missing"),
    "no value": ("upscale a.png -o", "-o needs a value"),
    "unknown option": ("upscale a.png -o out --scal 3", "--scal, did you mean --scale"),
    "no negative form": ("upscale a.png -o out --no-overwrite", "--no-overwrite"),
    "not a number": ("upscale a.png -o out --scale big", '"big"'),
    "not whole": ("upscale a.png -o out --tile 1.5", '"1.5"'),
    "out of range": ("upscale a.png -o out --quality 101", '"101" for --quality, must be <= 100'),
    "seed below 0": ("upscale a.png -o out --seed -5", '"-5" for --seed, must be >= 0'),
    "seed too large": (f"upscale a.png -o out --seed {2**63}", f'"{2**63}" for --seed, must be < {2**63}'),
    "tile below 0": ("upscale a.png -o out --tile -1", '"-1" for --tile, must be >= 0'),
    "overlap below -1": ("upscale a.png -o out --overlap -2", '"-2" for --overlap, must be >= -1'),
    "memory below 0": ("upscale a.png -o out --memory -1", '"-1" for --memory, must be >= 0'),
    "ema over 1": ("train teacher photos -o run --ema 1", '"1.0" for --ema, must be < 1'),
    "ema without value": ("train teacher photos -o run --ema nan", '"nan" for --ema, must be a finite number'),
    "rate of 0": ("train tsd data -o run --base sd3 --learning-rate 0", "for --learning-rate, must be > 0"),
    "endless guidance": ("train tsd data -o run --base sd3 --guidance inf", "for --guidance, must be a finite number"),
    "weight below 0": ("train tad-sd data -o run --base sd3 --score-weight -1", "for --score-weight, must be >= 0"),
    "not a choice": ("upscale a.png -o out --color blue", '"auto", "none", "wavelet", "adain"'),
    "unknown precision": ("train teacher photos -o run --precision fp8", '"fp8"'),
    "unknown device": ("prepare photos -o data --base sd3 --device abacus", '"abacus"'),
    "too many": ("train mix a b c -o d", "'c' is an unexpected argument"),
    "unknown command": ("upscail", 'did you mean "upscale"'),
    "unknown training": ("train pupil", "teacher, student, mix, tsd, tad-sd"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_options_ends_in_one_sentence(case: str, capsys, monkeypatch) -> None:
    words, named = MISTAKES[case]
    monkeypatch.setattr("sys.argv", ["onestep-sr", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    out, errors = capsys.readouterr()
    assert not out
    [line] = errors.splitlines()
    assert line.startswith("onestep-sr: ") and named in line and line.endswith(" --help).")


@pytest.mark.parametrize("words", [[], ["--help"], ["train"]])
def test_help_is_shown_without_a_command(words: list[str], capsys) -> None:
    assert app(words) == 0
    assert "Usage: onestep-sr" in capsys.readouterr().out


def test_the_version_is_the_packages_own(capsys) -> None:
    app(["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_the_last_value_of_a_repeated_option_is_used() -> None:
    make, bound, _ = app.parse_args("train mix a b -o c --share 0.1 --share 0.2")
    assert make(*bound.args, **bound.kwargs).share == 0.2


def test_defaults_equal_those_of_the_settings() -> None:
    """The command line and Python have the same defaults for upscaling, preparing and loss weights."""
    upscale = Upscale(["a.png"], output=Path("out"))
    assert upscale.options() == FileOptions()
    assert upscale.model.choice() == ModelChoice()
    assert Prepare(Path("photos"), output=Path("data"), base=Path("sd3")).config() == PrepareConfig()
    assert StudentWeightOptions().built() == StudentWeights()
