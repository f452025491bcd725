"""Save and resume training. A crash at any moment leaves a complete checkpoint."""

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
    """Load the checkpoint if there is one. Returns the step to resume from, and the best result so far.

    Raises UserError if the checkpoint was saved with other settings.
    """
    kept = folder.with_name("checkpoint.old")
    # After a crash between the two renames of `save_checkpoint`.
    if accelerator.is_main_process and not folder.exists() and kept.exists():
        kept.rename(folder)
    accelerator.wait_for_everyone()
    if not (folder / "run.json").exists():
        return 0, None
    saved = json.loads((folder / "run.json").read_text())
    if saved["settings"] != _as_json(settings):
        raise UserError(
            f"{folder} was saved with other settings: use the same ones to resume, or another output folder."
        )
    accelerator.load_state(str(folder))
    return saved["step"], Best(**saved["best"]) if saved["best"] else None


def save_checkpoint(accelerator: Accelerator, output: Path, settings: dict, step: int, best: Best | None) -> None:
    """Write a new checkpoint, then replace the old one: one of the two is always complete."""
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


def save_only_trainable(accelerator: Accelerator, prepared: nn.Module) -> None:
    """Save only trainable weights in checkpoints; frozen ones are read from the base's own files.

    Names are those of the unwrapped module, so the number of processes can change.
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
            raise UserError(f"{folder} belongs to another network: choose another output folder.")

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def fingerprint(weights: Iterable[Tensor]) -> str:
    """A hash of the first 16 stored values of each weight; it differs for other weights and other precisions.

    Weights on the meta device have no values and are skipped.
    """
    digest = hashlib.sha256()
    for weight in (each for each in weights if not each.is_meta):
        values = weight.detach().flatten()[:16].contiguous().view(torch.uint8)
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _as_json(settings: dict) -> dict:
    """The settings as JSON returns them, for example with lists for tuples."""
    return json.loads(json.dumps(settings))
