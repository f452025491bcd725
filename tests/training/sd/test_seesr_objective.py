"""Training of TAD-SeeSR: its losses by equations in float64, and runs on a teacher's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_peft
import small_seesr
import small_unet
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.families.tad_seesr import FILES
from onestep_sr.sr_models.families.tagger import read_tagger
from onestep_sr.sr_models.training import loop
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.pixel_objectives import StudentWeights
from onestep_sr.sr_models.training.sd import prepare, shards
from onestep_sr.sr_models.training.sd import runs as sd_runs
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.runs import PromptSource, SDRun
from onestep_sr.sr_models.training.sd.seesr_base import SeeSRBase
from onestep_sr.sr_models.training.sd.seesr_objective import SeeSRObjective
from onestep_sr.sr_models.training.sd.shared_base import Ranks
from onestep_sr.sr_models.training.sd.tad_objective import TADConfig
from safetensors.torch import load_file
from small_training import CONFIG, batch, cli, gradients, mixed_devices, paired, run_config, scalars
from torch import Tensor

METHOD = TADConfig(1e-3, 1e-3, weights=StudentWeights(0.2, 1.0, 0.2))
SEED, COUNT = 1, 3
TOLERANCE = 1e-3
LOSSES = ("loss", "regression", "score", "adversarial", "discriminator")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, SeeSR's files, the tagger, and data with a teacher's results and captions."""
    root = tmp_path_factory.mktemp("seesr")
    base = small_unet.write(root / "base", "2.1-base")
    small_peft.calm_output(base)
    small_seesr.write_networks(base, root / "seesr")
    small_seesr.write_ram(root / "ram")
    folders = paired(root)
    for index in range(2):
        (folders["hr"] / f"{index}.txt").write_text(f"a house, number {index}")
    config = replace(CONFIG, partners=prepare.Partners(folders["lr"], folders["targets"]))
    where: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "workers": 0}
    source = PromptSource(captions=True)
    sd_runs.prepare_data(folders["hr"], root / "data", base, config, source, report=lambda crops: None, **where)
    return root


def objective(root: Path) -> SeeSRObjective:
    base = SeeSRBase(open_base(root / "base", torch.float32), read_lora(root / "seesr"), read_tagger(root / "ram"))
    torch.manual_seed(0)
    made = SeeSRObjective(base, *shards.read_prompts(root / "data"), METHOD)
    for head in made.discriminator.heads:
        torch.nn.init.normal_(head.mix.weight, std=0.1)
    return made


def predictor(root: Path, picture: Tensor, embedding: Tensor, prompt: Tensor, controlled: bool = True) -> Callable:
    """The noise that SeeSR predicts, by diffusers' networks in float64, and its skips to the decoder; `controlled`:
    with the ControlNet's part of the skips."""
    (unet, of_unet), (control, of_control) = small_seesr.networks(root / "base", root / "seesr")
    small_seesr.look(unet, of_unet, embedding.double())
    small_seesr.look(control, of_control, embedding.double())
    skips: list[Tensor] = []
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, args, output: skips.append(output[1][0]))

    @torch.no_grad()
    def predict(z_t: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips.clear()
        options: dict[str, Any] = {"encoder_hidden_states": prompt.double(), "return_dict": False}
        down, middle = control(z_t, t, controlnet_cond=picture.double(), **options)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        e = unet(z_t, t, **options, **residuals)[0]
        return e, [(skip + part * controlled).float() for skip, part in zip(skips, (down[1], down[3]), strict=True)]

    return predict


def noised(z: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z_t = alpha z + sigma n of Stable Diffusion 2 at timesteps (B,), with alpha and sigma."""
    pairs = torch.tensor([small_peft.roots(int(each)) for each in t], dtype=torch.float64)
    alpha, sigma = pairs[:, 0, None, None, None], pairs[:, 1, None, None, None]
    return alpha * z + sigma * noise, alpha, sigma


def equations(
    root: Path,
    made: SeeSRObjective,
    data: dict[str, Tensor],
    *,
    empty_prompts: bool = True,
    teacher_sees: str = "hr",
    target: str = "z_t",
    start: str = "lr",
    stride: int = 20,
    controlled: bool = True,
) -> dict[str, Tensor]:
    """The losses, in float64 but for the discriminator. What may be passed by name are the places for mistakes."""
    draws, tagger = Draws(SEED, range(COUNT)), read_tagger(root / "ram")
    has_prompt, null = draws.integers(0, 2).bool(), shards.read_prompts(root / "data")[1].prompt.float()
    assert 0 < has_prompt.sum() < COUNT, "both kinds"
    keeps = has_prompt | (not empty_prompts)
    prompt = torch.stack([p.float() if kept else null[0] for p, kept in zip(data["prompt"], keeps, strict=True)])
    lr, hr = data["lr"].float() / 255, data["hr"].float() / 255
    large = resize(lr, hr.shape[-2:]).clamp(0, 1)
    seen = hr if teacher_sees == "hr" else large
    of_seen = tagger.embedding(F.interpolate(seen, (tagger.network.side,) * 2, mode="bicubic"))
    student = predictor(root, large, tagger.embedding(lr), prompt)
    teacher = predictor(root, seen, of_seen, prompt, controlled)

    with torch.no_grad():
        z_lr = made.base.encode((large if start == "lr" else hr) * 2 - 1).double()
    z_teacher, z_h, t = data[target].double(), data["z_h"].double(), torch.full((COUNT,), 999)
    z_t, alpha, sigma = noised(z_lr, draws.normal(4, 8, 8), t)
    z_s = (z_t - sigma * student(z_t, t)[0]) / alpha
    t, noise = stride * draws.integers(1, 45), draws.normal(4, 8, 8)
    g = teacher(noised(z_s, noise, t)[0], t)[0] - teacher(noised(z_teacher, noise, t)[0], t)[0]
    t, noise = stride * draws.integers(1, 45), draws.normal(4, 8, 8)
    fake, real = (teacher(noised(z, noise, t)[0], t)[1] for z in (z_s, z_h))
    with torch.no_grad():
        on_fake, on_real = (made.discriminator(skips, 999 - t, 1000) for skips in (fake, real))
    losses = {"regression": (z_s - z_teacher).square().mean(), "score": (g * z_s).mean()}
    losses |= {"adversarial": -on_fake.mean(), "discriminator": F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()}
    total = 0.2 * losses["regression"] + losses["score"] + 0.2 * losses["adversarial"] + losses["discriminator"]
    return {"loss": total} | losses


@pytest.fixture(scope="module")
def made(root: Path) -> SeeSRObjective:
    """With a student that still is its teacher, and a discriminator whose spectral norms stay as they are."""
    made = objective(root)
    made.discriminator.eval()
    return made


@pytest.fixture(scope="module")
def data(root: Path) -> dict[str, Tensor]:
    return batch(root / "data", range(COUNT))


@pytest.fixture(scope="module")
def losses(made: SeeSRObjective, data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in made(data, Draws(SEED, range(COUNT)), 0).items()}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative difference of two sets of losses."""
    return max(abs(float(found[name] - expected[name])) / (abs(float(expected[name])) + 0.01) for name in expected)


def test_the_losses_are_those_of_the_equations(root, made, data, losses) -> None:
    assert apart(losses, equations(root, made, data)) < TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "prompts are never empty": {"empty_prompts": False},
    "the teacher sees LR": {"teacher_sees": "lr"},
    "HR in place of the teacher's result": {"target": "z_h"},
    "start from HR, as published": {"start": "hr"},
    "other timesteps": {"stride": 19},
    "skips without the ControlNet": {"controlled": False},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(root, made, data, losses, mistake) -> None:
    assert apart(losses, equations(root, made, data, **MISTAKES[mistake])) > 2 * TOLERANCE


def test_each_part_learns_from_its_own_loss_only(root) -> None:
    made = objective(root)
    losses = made(batch(root / "data"), Draws(0, [0, 1]), 0)
    for name in ("regression", "score", "adversarial", "discriminator"):
        made.zero_grad()
        losses[name].backward(retain_graph=True)
        moved = [key for key, gradient in gradients(made).items() if gradient.any()]
        assert moved and all((key.startswith("discriminator.")) == (name == "discriminator") for key in moved)
        assert all(".learned." in key or key.startswith("discriminator.") for key in moved)


def test_a_step_runs_on_the_objectives_device(root) -> None:
    assert mixed_devices(objective(root), batch(root / "data")) == []


def test_validation_runs_the_student_from_the_noise_of_the_seed(root) -> None:
    made, lr = objective(root), torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    first, again, other = (made.restore(lr, seed) for seed in (1, 1, 2))
    assert first.shape == (1, 3, 64, 96) and torch.equal(first, again) and not torch.equal(first, other)


def test_timesteps_are_the_published_ones(root) -> None:
    made = objective(root)
    timesteps = made.base.process.timesteps[made.score_index(Draws(0, range(2000)))]
    assert set(timesteps.tolist()) == set(range(20, 900, 20))


def run(root: Path) -> SDRun:
    return SDRun(root / "base", root / "data", Ranks(4, 4, 0), start=root / "seesr", tagger=root / "ram")


def test_a_resumed_run_gives_the_same_student_which_runs(root, tmp_path, monkeypatch) -> None:
    whole = sd_runs.train_tad(run_config(tmp_path / "whole", steps=2, save_every=1), run(root), METHOD)
    step = loop.training_step

    def stopped(*arguments):
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return step(*arguments)

    config = run_config(tmp_path / "parts", steps=2, save_every=1)
    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        sd_runs.train_tad(config, run(root), METHOD)
    monkeypatch.setattr(loop, "training_step", step)
    parts = sd_runs.train_tad(config, run(root), METHOD)
    for file in FILES:
        first, second = load_file(whole / file), load_file(parts / file)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for name in LOSSES:
        assert scalars(whole, name) == scalars(parts, name)
        assert all(np.isfinite(value) for value in scalars(whole, name).values())
    saved = {name for name in load_file(whole / "checkpoint.safetensors") if name.startswith("weights/base.")}
    assert all(".learned." in name or "index" in name for name in saved), sorted(saved)[:5]

    model = open_lora(root / "base", read_lora(whole).with_tagger(root / "ram"), dtype=torch.float32).model
    model = replace(model, recipe=replace(model.recipe, shortest=0))
    result = upscale(model, small_peft.smooth_image(), UpscaleOptions(1))
    assert torch.isfinite(result).all() and result.std() > 0.01
    with pytest.raises(UserError, match="other settings"):
        sd_runs.train_tad(config, run(root), replace(METHOD, weights=StudentWeights()))


def test_a_student_trains_further_with_its_teacher_and_in_fp8(root, tmp_path) -> None:
    made = objective(root).base
    for weight in made.student_parameters():
        weight.data += 0.01
    made.save(tmp_path / "first")
    further = replace(run(root), start=tmp_path / "first", teacher=root / "seesr", fp8=True)
    result = sd_runs.train_tad(run_config(tmp_path / "second", steps=1, batch=1), further, METHOD)
    for file in FILES:
        seesr, first, second = (load_file(folder / file) for folder in (root / "seesr", tmp_path / "first", result))
        learned = {name for name in seesr if "image_attentions" in name or "cond_embedding" in name}
        assert all(torch.equal(second[name], seesr[name].half()) for name in seesr.keys() - learned)
        moved = [float((second[name] - first[name]).abs().max()) for name in learned]
        assert 0 < max(moved) < 0.005, "from the student on"


@pytest.mark.slow
def test_two_processes_share_the_base(root, tmp_path) -> None:
    """With the losses of two that do not, and the same files."""
    options = ["--base", root / "base", "--start", root / "seesr", "--tagger", root / "ram", "--precision", "no"]
    options += ["--steps", 2, "--workers", 0, "--warmup", 1, "--batch", 1, "--learning-rate", 1e-3]
    for name, more in (("two", ()), ("spread", ("--shard",))):
        ran = cli("train", "tad-sd", root / "data", *options, *more, "-o", tmp_path / name, launch=2)
        assert ran.returncode == 0, ran.stderr
    for name in LOSSES:
        assert scalars(tmp_path / "spread", name) == pytest.approx(scalars(tmp_path / "two", name), rel=1e-5, abs=1e-6)
    for file in FILES:
        first, second = (load_file(tmp_path / name / file) for name in ("two", "spread"))
        assert first.keys() == second.keys()
        assert all((first[name] - second[name]).abs().max() < 1e-3 for name in first)


def test_training_starts_from_the_converted_file(root, tmp_path, monkeypatch) -> None:
    convert(root / "seesr", tmp_path / "seesr.safetensors")
    started = []
    monkeypatch.setattr(sd_runs, "train", lambda config, made, samples: started.append(made.base) or tmp_path)
    for start in (root / "seesr", tmp_path / "seesr.safetensors"):
        sd_runs.train_tad(run_config(tmp_path), replace(run(root), start=start), METHOD)
    for ours, theirs in zip(*(base.student_parameters() for base in started), strict=True):
        assert torch.equal(ours, theirs)


def test_a_pipeline_is_not_taken_for_it(root, tmp_path) -> None:
    with pytest.raises(UserError, match=r"--tagger is for TAD-SeeSR, but --start is .*base"):
        sd_runs.train_tad(run_config(tmp_path), replace(run(root), start=root / "base"), METHOD)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tagger": ({"tagger": None}, "seesr needs RAM"),
    "another teacher": ({"teacher": Path("lora.safetensors")}, "is SeeSR, but --teacher is lora.safetensors: give"),
    "an auxiliary": ({"ranks": Ranks(4, 4, 4)}, "does not use --rank-auxiliary"),
    "another start": ({"start": None}, "--tagger is for TAD-SeeSR, but --start is None"),
    "shards of one process": ({"shard": True}, "Sharing the base needs at least two processes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_does_not_have_is_refused(root, tmp_path, what) -> None:
    changes, words = REFUSED[what]
    with pytest.raises(UserError, match=words):
        sd_runs.train_tad(run_config(tmp_path), replace(run(root), **changes), METHOD)
