"""What a run needs to go on where it stopped: written so that a crash at any moment leaves a whole one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError

LEARNED_FILE = "learned.safetensors"


@dataclass(frozen=True)
class Best:
    """The best validation score so far and its step."""

    step: int
    score: float


def resume(accelerator: Accelerator, folder: Path, settings: dict) -> tuple[int, Best | None]:
    """Load the checkpoint, if there is one; returns the step to go on from. Raises UserError for another run's."""
    kept = folder.with_name("checkpoint.old")
    # A crash came between the two renames of `save_checkpoint`.
    if accelerator.is_main_process and not folder.exists() and kept.exists():
        kept.rename(folder)
    accelerator.wait_for_everyone()
    if not (folder / "run.json").exists():
        return 0, None
    saved = json.loads((folder / "run.json").read_text())
    if saved["settings"] != _as_json(settings):
        raise UserError(f"{folder} was made with other settings: use the same ones to go on, or another output folder.")
    accelerator.load_state(str(folder))
    return saved["step"], Best(**saved["best"]) if saved["best"] else None


def save_checkpoint(accelerator: Accelerator, output: Path, settings: dict, step: int, best: Best | None) -> None:
    """Write beside the old checkpoint, then put it in its place: one of the two is always whole."""
    folder, fresh, old = (output / name for name in ("checkpoint", "checkpoint.new", "checkpoint.old"))
    accelerator.save_state(str(fresh))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = {"step": step, "best": asdict(best) if best else None, "settings": _as_json(settings)}
        (fresh / "run.json").write_text(json.dumps(state))
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def keep_what_learns(accelerator: Accelerator, prepared: nn.Module) -> None:
    """Checkpoints hold what changes: a base of gigabytes that never does is read from its own files.

    Names are the module's own, however many processes there are.
    """
    module = accelerator.unwrap_model(prepared)
    frozen = {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}

    def save(models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()
        state = {name: t.contiguous() for name, t in module.state_dict().items() if name not in frozen}
        if accelerator.is_main_process:
            save_file(state, Path(folder) / LEARNED_FILE)

    def load(models: list[nn.Module], folder: str) -> None:
        models.clear()
        found = module.load_state_dict(load_file(Path(folder) / LEARNED_FILE), strict=False)
        if found.unexpected_keys or set(found.missing_keys) != frozen:
            raise UserError(f"{folder} is of another network: choose another output folder.")

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def fingerprint(weights: Iterable[Tensor]) -> str:
    """A hash of the first 16 values of each, as they are stored: another file or precision gives another one.

    Weights on the meta device have no values and are left out.
    """
    digest = hashlib.sha256()
    for weight in (each for each in weights if not each.is_meta):
        values = weight.detach().flatten()[:16].contiguous().view(torch.uint8)
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _as_json(settings: dict) -> dict:
    """As it reads after a file: tuples as lists."""
    return json.loads(json.dumps(settings))
