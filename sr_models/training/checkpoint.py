"""Save and resume training.

A checkpoint is one safetensors file, which replaces the one before it in one step: a crash at any moment leaves a
complete checkpoint, and reading one executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.low_rank import under
from ..checkpoints.pickle_scan import shown
from ..errors import UserError
from ..files.whole import remove_temporaries, write_whole

CHECKPOINT_FILE = "checkpoint.safetensors"
RUN_KEY = "onestep_sr_run"
SAFETENSORS_TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # save_file writes to such a name before it renames
EARLIER = ("checkpoint", "checkpoint.old")  # folders of earlier versions, which held pickles


@dataclass(frozen=True)
class Best:
    """The best validation score so far and its step."""

    step: int
    score: float


@dataclass(frozen=True)
class Learned:
    """Everything that training changes. Frozen weights are not saved: they are read from the base's own files.

    Random numbers have no state: they depend on the seed and a sample's index.

    Attributes:
        module: the trained module, unwrapped, so that the number of processes can change.
        average: the moving average of its weights.
        scaler: the gradient scaler of fp16, else None.
    """

    module: nn.Module
    optimizer: Any
    average: nn.Module
    scaler: Any = None

    def tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        tensors = {
            f"optimizer/{index}/{name}": value for index, entry in state.items() for name, value in entry.items()
        }
        tensors |= {f"average/{name}": value for name, value in self.average.state_dict().items()}
        frozen = self._frozen()
        tensors |= {f"weights/{name}": t for name, t in self.module.state_dict().items() if name not in frozen}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError, KeyError or RuntimeError for those of another module."""
        found = self.module.load_state_dict(under(tensors, "weights/"), strict=False)
        if found.unexpected_keys or set(found.missing_keys) != self._frozen():
            raise ValueError("it has other weights")
        self.average.load_state_dict(under(tensors, "average/"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(tensors, "optimizer/").items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def _frozen(self) -> set[str]:
        return {name for name, w in self.module.named_parameters(remove_duplicate=False) if not w.requires_grad}


def save_checkpoint(output: Path, learned: Learned, settings: dict, step: int, best: Best | None) -> None:
    """Replace the checkpoint. Raises UserError if it cannot be written; the one before it then stays."""
    scaler = learned.scaler.state_dict() if learned.scaler else None
    state = {"step": step, "best": asdict(best) if best else None, "scaler": scaler, "settings": settings}
    write_whole(
        output / CHECKPOINT_FILE, partial(save_file, learned.tensors(), metadata={RUN_KEY: json.dumps(state)}), _on_disk
    )


def resume(output: Path, learned: Learned, settings: dict) -> tuple[int, Best | None]:
    """Load the checkpoint if there is one. Returns the step to resume from, and the best result so far.

    Raises UserError if the checkpoint was saved with other settings or by an earlier version, and if it is broken.
    """
    path = output / CHECKPOINT_FILE
    if not path.exists():
        _refuse_earlier(output)
        return 0, None
    saved, tensors = read_checkpoint(path, "remove it to start from the beginning")
    if saved.get("settings") != json.loads(json.dumps(settings)):
        raise UserError(f"{path} was saved with other settings: use the same ones to resume, or another output folder.")
    try:
        learned.load(tensors)
        if learned.scaler:
            learned.scaler.load_state_dict(saved["scaler"])
        return int(saved["step"]), Best(**saved["best"]) if saved["best"] else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not belong to this run ({reason}): choose another output folder.") from error


def remove_leftovers(output: Path) -> None:
    """Remove what processes that were killed while they saved have left in a run's folder."""
    remove_temporaries(output / CHECKPOINT_FILE)
    for path in output.glob(".tmp*"):
        if SAFETENSORS_TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path, remedy: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a run saved: its step, best result, scaler and settings; and the tensors of `Learned.tensors`.

    Raises UserError, which ends with `remedy`, for a file that cannot be read or that no training run saved.
    """
    try:
        with safe_open(path, framework="pt") as file:
            saved = dict(json.loads((file.metadata() or {})[RUN_KEY]))
            return saved, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({shown(str(error))}): {remedy}.") from error


def _refuse_earlier(output: Path) -> None:
    for name in EARLIER:
        if (output / name / "run.json").is_file():
            raise UserError(
                f"{output / name} was saved by an earlier version in files that could run code: choose another output "
                "folder, or finish the run with that version."
            )


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Waits until the file is on disk, as the checkpoint before it is about to go."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    yield


def fingerprint(weights: Iterable[Tensor]) -> str:
    """A hash of the first 16 stored values of each weight; it differs for other weights and other precisions.

    Weights on the meta device have no values and are skipped.
    """
    digest = hashlib.sha256()
    for weight in (each for each in weights if not each.is_meta):
        values = weight.detach().flatten()[:16].contiguous().view(torch.uint8)
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()
