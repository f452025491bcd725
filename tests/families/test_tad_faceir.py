"""TAD-faceir: its published files, its equation in float64, and what possible mistakes would give."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import small_peft
import torch
import torch.nn.functional as F
from full_size import weights_of
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import tad_faceir
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load, recipe_of
from onestep_sr.sr_models.families.tad_faceir import F8, RECIPES
from onestep_sr.sr_models.networks.swin_unet_faces import FaceUNet
from onestep_sr.sr_models.networks.vq_autoencoder import FACES_F8, VQAutoencoder
from reference_swin import ReferenceUNet
from small_models import FACES, FACES_VQ, use_small_networks, write_faces
from small_models import FACES_NAMES as NAMES
from torch import Tensor

TOLERANCE = 1e-4
SEED = 7
PUBLISHED = RECIPES["tad-faceir"]
SAME_SIZE = UpscaleOptions(1, seed=SEED)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces")).parent


@pytest.fixture(scope="module")
def networks(written) -> tuple[FaceUNet, VQAutoencoder]:
    networks = FaceUNet(FACES), VQAutoencoder(FACES_VQ)
    for name, network in zip(NAMES, networks, strict=True):
        network.load_state_dict(torch.load(written / name, weights_only=True)["state_dict"])
    return networks


@pytest.fixture
def folder(written, monkeypatch):
    """The files of small networks, which do not enlarge pictures to 512 px."""
    use_small_networks(monkeypatch.setattr)
    return written


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(3))


def stack(weights: dict[str, Tensor], lr: Tensor, order: str = "conv, SiLU, halve", places: str = "036") -> Tensor:
    """The LR at eight times the latent's resolution -> 128 channels on the latent's grid."""
    x = lr
    for place in places:
        conv, op = (f"feature_extractor.{name}" for name in (place, f"{int(place) + 2}.op"))
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=1)
        x = F.silu(x) if order == "conv, SiLU, halve" else x
        x = F.conv2d(x, weights[f"{op}.weight"], weights[f"{op}.bias"], stride=2, padding=1)
        x = F.silu(x) if order == "conv, halve, SiLU" else x
    return x


def equation(
    networks,
    image: Tensor,
    *,
    published_mask: bool = True,
    sqrt_eta: float = 0.99,
    divisor: float = 2.2182,
    timestep: int = 3,
    order: str = "conv, SiLU, halve",
    lr_from: float = -1.0,
    from_picture: float = 1.0,
    seed: int = SEED,
    is_quantised: bool = True,
    scaled_lr: bool = False,
) -> tuple[Tensor, Tensor]:
    """z_T = z_y + kappa sqrt(eta_T) n, z_0 = f(z_T / sqrt(1 + kappa^2 eta_T), stack(lr), t = 3), in float64: z_0 and
    the picture. What may be passed by name are the places for mistakes."""
    unet, vq = networks
    weights = {name: value.double() for name, value in unet.state_dict().items()}
    vq = VQAutoencoder(FACES_VQ).double()
    vq.load_state_dict(networks[1].state_dict())
    with torch.no_grad():
        z_y = vq.encode(image.double() * 2 - 1)
        z_t = from_picture * z_y + 2 * sqrt_eta * canvas_noise(z_y.float(), seed).double()
        lr = image.double() * (1 - lr_from) + lr_from
        features = stack(weights, lr / divisor if scaled_lr else lr, order)
        reference = ReferenceUNet(unet.state_dict(), replace(FACES, published_mask=published_mask))
        z_0 = reference(z_t / divisor, features, torch.tensor([timestep]))
        found = vq.decode(z_0) if is_quantised else vq.decoder(vq.post_quant_conv(z_0))
    return z_0, (found / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def truth(networks, image) -> tuple[Tensor, Tensor]:
    divisor = (1 + 4 * 0.99**2) ** 0.5
    assert abs(divisor - 2.2182) < 1e-4
    latent, picture = equation(networks, image, divisor=divisor)
    assert picture.std() > 0.02 and (picture == picture.clamp(0.01, 0.99)).float().mean() > 0.5, "something to compare"
    return latent, picture


def test_the_result_is_what_the_equation_says(folder, image, truth, monkeypatch) -> None:
    model, latents = load(folder / NAMES[0]).model, []
    decode = model.codec.decode
    monkeypatch.setattr(model.codec, "decode", lambda z, stage=None: latents.append(z.clone()) or decode(z, stage))
    result = upscale(model, image, SAME_SIZE)
    assert result.shape == image.shape
    assert (latents[0] - truth[0]).abs().max() < TOLERANCE
    assert (result - truth[1]).abs().max() < TOLERANCE


def test_the_command_line_gives_the_same_and_names_the_licence(folder, image, truth, tmp_path, capsys) -> None:
    result = small_peft.on_the_command_line(image, tmp_path, "--model", folder / NAMES[0], "--seed", SEED)
    assert (result - truth[1]).abs().max() < TOLERANCE
    assert "TAD-faceir or ResShift for faces may not be used commercially" in capsys.readouterr().out


MISTAKES: dict[str, dict[str, Any]] = {
    "the textbook's mask": {"published_mask": False},
    "eta in place of its root": {"sqrt_eta": 0.99**2},
    "the root of t = 2": {"sqrt_eta": 0.66732},
    "no divisor": {"divisor": 1.0},
    "divisor without kappa": {"divisor": (1 + 0.99**2) ** 0.5},
    "divisor of sqrt eta": {"divisor": (1 + 4 * 0.99) ** 0.5},
    "the LR divided too": {"scaled_lr": True},
    "SiLU after the halving": {"order": "conv, halve, SiLU"},
    "no SiLU": {"order": "conv, halve"},
    "the LR in [0, 1]": {"lr_from": 0.0},
    "t = 0": {"timestep": 0},
    "t = 14": {"timestep": 14},
    "start from noise alone": {"from_picture": 0.0},
    "another seed's noise": {"seed": SEED + 1},
    "not quantised": {"is_quantised": False},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(networks, image, truth, mistake) -> None:
    found = equation(networks, image, **MISTAKES[mistake])
    assert max((a - b).abs().max() for a, b in zip(found, truth, strict=True)) > 5 * TOLERANCE


def test_convolutions_of_the_stack_in_another_order_do_not_fit(networks) -> None:
    weights = {name: value.double() for name, value in networks[0].state_dict().items()}
    with pytest.raises(RuntimeError, match="expected input"):
        stack(weights, torch.zeros(1, 3, 64, 64, dtype=torch.float64), places="063")


# Sizes


@pytest.mark.parametrize(("scale", "size"), [(1, (41, 60)), (2.5, (102, 150)), (4, (164, 240))])
def test_the_result_has_the_asked_size(folder, scale, size) -> None:
    image = torch.rand(1, 3, 41, 60)
    assert upscale(load(folder / NAMES[0]).model, image, UpscaleOptions(scale)).shape[2:] == size


def test_a_larger_result_is_that_of_the_enlarged_picture(folder, image) -> None:
    model, small = load(folder / NAMES[0]).model, image[:, :, :32, :64]
    large = upscale(model, small, UpscaleOptions(2, seed=SEED))
    assert (large - upscale(model, resize(small, (64, 128)), SAME_SIZE)).abs().max() < TOLERANCE


def test_a_small_picture_is_restored_at_the_native_size(folder, image, monkeypatch) -> None:
    """512 px; here 128."""
    assert PUBLISHED.shortest * F8.config.factor == 512
    monkeypatch.setitem(tad_faceir.RECIPES, "tad-faceir", replace(PUBLISHED, shortest=16))
    model, face = load(folder / NAMES[0]).model, image[:, :, :, :64]
    plain = upscale(model, resize(face, (128, 128)), SAME_SIZE)
    assert (upscale(model, face, SAME_SIZE) - resize(plain, (64, 64)).clamp(0, 1)).abs().max() < TOLERANCE


# Files


@pytest.fixture(scope="module")
def full_size_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.save(weights_of(FaceUNet), folder / NAMES[0])
    torch.save(weights_of(partial(VQAutoencoder, FACES_F8)), folder / NAMES[1])
    return folder


def test_the_published_files_open(full_size_folder) -> None:
    found = load(full_size_folder / NAMES[0], dtype=torch.float16)
    unet, vq = found.modules
    assert isinstance(vq, VQAutoencoder)
    assert sum(p.numel() for p in unet.feature_extractor.parameters()) == 143_616
    assert sum(p.numel() for p in unet.parameters()) == 118_931_604
    parts = (vq.encoder, vq.decoder, vq)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [33_028_680, 43_947_523, 77_009_115]
    recipe = found.model.recipe
    assert (recipe.name, recipe.scale, recipe.tile, recipe.overlap, recipe.multiple) == ("tad-faceir", 1, 64, 8, 64)
    assert (found.model.codec.factor, found.model.codec.latent_channels) == (8, 8)


def test_the_files_are_described(full_size_folder, tmp_path) -> None:
    model, autoencoder = (full_size_folder / name for name in NAMES)
    assert describe(model) == "TAD-faceir, one step, for faces of 512 px"
    assert "is the VQ-f8 autoencoder of models for faces: choose TAD-faceir.pth" in describe(autoencoder)
    teacher = tmp_path / "resshift_faceir_s4.pth"
    teacher.symlink_to(model)
    assert describe(teacher) == "ResShift for faces, 4 steps, for faces of 512 px"
    recipe, factor = recipe_of(teacher)
    assert (recipe.name, recipe.step.evaluations, recipe.step.noises, factor) == ("resshift-faceir", 4, 4, 8)
    assert recipe_of(teacher, "tad-faceir")[0].step.evaluations == 1


def test_the_autoencoder_must_be_the_one_for_faces(full_size_folder, tmp_path) -> None:
    alone = tmp_path / "TAD-faceir.pth"
    alone.symlink_to(full_size_folder / NAMES[0])
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / F8.file} does not exist: copy {F8.file} there")):
        load(alone)
    other = tmp_path / "autoencoder_vq_f4.pth"
    torch.save(weights_of(VQAutoencoder), other)
    words = f"autoencoder_vq_f4.pth is not the VQ-f8 autoencoder of models for faces: choose {F8.file}."
    with pytest.raises(UserError, match=re.escape(words)):
        load(alone, autoencoder=other, dtype=torch.float16)
