"""On which device the tensors of each family are, without a GPU: see `null_device`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_invsr
import small_peft
import small_sd3
import small_seesr
import small_unet
import torch
from null_device import NULL, NullDevice
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.families.registry import read_lora
from small_models import use_small_networks, write_adcsr, write_faces

MOST_COPIES = 20  # of one picture in one tile; each would cost a GPU some of its time
PER_PICTURE = {"S3Diff": 2 * 285}  # halves of its LoRA, which is merged for every picture


FAMILIES: dict[str, Callable[[Path, Path], Path]] = {
    **small_peft.WRITERS,
    "InvSR": small_peft.saved(lambda base: small_invsr.predictor().state_dict()),
    "TAD-SeeSR": small_seesr.write_networks,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_unet.write(tmp_path_factory.mktemp("base"), "2.1-base")


def require_one_device(model: SRModel, most: int) -> None:
    """Run twice, as the first run may keep what later ones use again."""
    picture = torch.rand(1, 3, 128, 128)
    with NullDevice():
        upscale(model, picture)
    with NullDevice() as device:
        result = upscale(model, picture)
    assert result.shape == (1, 3, 512, 512)
    assert not device.mixed
    assert 0 < len(device.copies) <= most, "\n".join(device.copies)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_its_tensors_on_the_device(name: str, base: Path, tmp_path: Path) -> None:
    lora = read_lora(FAMILIES[name](base, tmp_path))
    if name == "TAD-SeeSR":
        small_seesr.write_ram(tmp_path / "ram")
        lora = lora.with_tagger(tmp_path / "ram")
    with NullDevice() as opening:
        model = open_lora(base, lora, dtype=torch.float16, device=NULL).model
    assert not opening.mixed
    require_one_device(model, MOST_COPIES + PER_PICTURE.get(name, 0))


@pytest.mark.parametrize("strengths", [(1.2, 0.7), (0.0, 1.0)], ids=["free", "one"])
def test_so_does_pisa_sr_at_free_strengths(strengths: tuple[float, float], base: Path, tmp_path: Path) -> None:
    lora = read_lora(FAMILIES["PiSA-SR"](base, tmp_path))
    lora = lora.at(dict(zip(("pixel", "semantic"), strengths, strict=True)))
    with NullDevice():
        model = open_lora(base, lora, dtype=torch.float16, device=NULL).model
    require_one_device(model, MOST_COPIES)


def test_so_does_tsd_sr(tmp_path: Path) -> None:
    files = small_sd3.write(tmp_path, (32, 32, 64, 64))
    place: dict[str, Any] = {"dtype": torch.float16, "device": NULL}
    with NullDevice():
        model = open_lora(files.folder, files.lora, embeddings=files.embeddings, **place).model
    require_one_device(model, MOST_COPIES)


@pytest.mark.parametrize("write", [None, write_adcsr, write_faces], ids=["bundled", "AdcSR", "TAD-faceir"])
def test_so_do_complete_models(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_networks(monkeypatch.setattr)
    require_one_device(load(write(tmp_path) if write else BUNDLED, dtype=torch.float16).to(NULL).model, MOST_COPIES)
