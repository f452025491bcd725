"""TSD-SR's training on a small Stable Diffusion 3: from pictures to LoRA files that every reader takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_peft
import small_sd3
import small_unet
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from onestep_sr.sr_models.checkpoints.low_rank import LowRank
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.diffusers_host.unet_prompts import open_text_encoders
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import lora_files, tsd_sr
from onestep_sr.sr_models.families.convert import convert
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.measures import alexnet
from onestep_sr.sr_models.measures import lpips as features
from onestep_sr.sr_models.training import loop
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.sd import lora, shards, tsd_objective
from onestep_sr.sr_models.training.sd import runs as sd_runs
from onestep_sr.sr_models.training.sd.bases import UNET, Condition, open_base, store_in_fp8
from onestep_sr.sr_models.training.sd.runs import PromptSource, SDRun
from onestep_sr.sr_models.training.sd.shared_base import AUXILIARY, STUDENT, Ranks, SharedBase
from onestep_sr.sr_models.training.sd.tsd_objective import Stage, TSDConfig, TSDObjective
from PIL import Image
from places import PHOTOS
from safetensors import safe_open
from safetensors.torch import load_file
from small_training import (
    CONFIG,
    NARROW,
    RANKS,
    batch,
    cli,
    gradients,
    launched,
    mixed_devices,
    objective,
    prepared,
    run_config,
    scalars,
    shaken,
    shared,
    write_base,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    return write_base(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def data(small: small_sd3.SmallSD3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    assert prepared(small, folder) == []
    return folder


# The models


def test_one_base_is_three_models(small, data) -> None:
    base = shaken(shared(small, teacher=small.lora / "transformer.safetensors"))
    z, index = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([300])
    condition, _ = shards.read_prompts(data)
    with torch.no_grad():
        student, teacher, auxiliary = (
            f(z, *a, condition) for f, a in ((base.student, ()), (base.teacher, [index]), (base.auxiliary, [index]))
        )
        again = base.teacher(z, index, condition)
        plain = shared(small).teacher(z, index, condition)
    assert torch.equal(teacher, again), "switching leaves nothing behind"
    assert len({float(x.sum()) for x in (student, teacher, auxiliary, plain)}) == 4
    learning = {name for name, weight in base.named_parameters() if weight.requires_grad}
    assert learning == {n for n, _ in base.named_parameters() if f".{STUDENT}." in n or f".{AUXILIARY}." in n}
    vae = small_sd3.build_vae(NARROW)
    vae.load_state_dict(load_file(small.folder / "vae" / "diffusion_pytorch_model.safetensors"))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(base.encode(image), 1.5305 * vae.encode(image).latent_dist.mode(), atol=1e-3)
        assert torch.allclose(base.decode(z), vae.decode(z / 1.5305).sample, atol=1e-5)


def test_student_and_auxiliary_learn_from_their_own_losses_only(small, data, monkeypatch) -> None:
    monkeypatch.setattr(tsd_objective, "EARLY", Stage(0.0, 0.0, 0.0, 1))
    made = objective(shaken(shared(small)), data)
    losses = made(batch(data), Draws(0, [0, 1]), 0)
    losses["loss"].backward()
    moved = {name for name, gradient in gradients(made.base).items() if gradient.any()}
    assert moved and all(f".{AUXILIARY}." in name for name in moved)
    monkeypatch.setattr(tsd_objective, "EARLY", Stage(1.0, 1.0, 1.0, 1))
    made.zero_grad()
    losses = made(batch(data), Draws(0, [0, 1]), 0)
    (losses["loss"] - losses["auxiliary"]).backward()
    moved = {name for name, gradient in gradients(made.base).items() if gradient.any()}
    assert all(f".{STUDENT}." in name for name in moved)
    assert any(name.startswith("vae.encoder") for name in moved) and any(name.startswith("network") for name in moved)


def test_a_step_of_tsd_runs_on_the_objectives_device(small, data) -> None:
    assert mixed_devices(objective(shaken(shared(small)), data), batch(data)) == []


@pytest.mark.parametrize("steps", [1, 4])
def test_the_distillation_term_alone_pulls_z_s_along_g(small, data, monkeypatch, steps) -> None:
    """Its gradient has to reach the student: in the published script it is computed without one and does not."""
    monkeypatch.setattr(tsd_objective, "EARLY", Stage(0.0, 0.0, 1.0, steps))
    made, seen = objective(shaken(shared(small)), data), {}
    student = made.base.student

    def kept(*arguments):
        seen["z_s"] = student(*arguments)
        seen["z_s"].retain_grad()
        return seen["z_s"]

    monkeypatch.setattr(made.base, "student", kept)
    losses = made(batch(data), Draws(0, [0, 1]), 0)
    losses["loss"].backward()
    g = seen["z_s"].grad * seen["z_s"].numel()
    assert float(losses["distillation"].detach()) == pytest.approx(0.5 * float(g.square().mean()), rel=1e-5)
    assert g.abs().max() > 1e-3


def test_gradient_checkpointing_changes_no_gradient(small, data) -> None:
    """The second forward pass comes when other adapters are active."""
    found = []
    for saving in (False, True):
        made = objective(shaken(shared(small)), data, TSDConfig(early_steps=0))
        if saving:
            made.base.enable_gradient_checkpointing()
        made(batch(data), Draws(0, [0, 1]), 0)["loss"].backward()
        found.append(gradients(made.base))
    assert found[0].keys() == found[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6 * largest), name


def test_student_and_auxiliary_learn_the_same_in_bf16_and_float32(small, data) -> None:
    """Autocast caches converted weights, and the auxiliary's are first used without gradients."""
    found, pictures = [], batch(data)
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        made = objective(shaken(SharedBase(open_base(small.folder, dtype), RANKS)), data)
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            losses = made(pictures, Draws(0, [0, 1]), 0)
        losses["loss"].backward()
        found.append(gradients(made.base))
    for name, least in ((STUDENT, 0.9), (AUXILIARY, 0.99)):
        exact, rough = (torch.cat([g.flatten() for key, g in each.items() if f".{name}." in key]) for each in found)
        assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > least


def test_a_base_in_fp8_takes_half_and_still_teaches(small, data) -> None:
    opened = open_base(small.folder, torch.bfloat16)
    before = sum(weight.nbytes for weight in opened.network.parameters())
    linear = sum(m.weight.nbytes for m in opened.network.modules() if isinstance(m, torch.nn.Linear))
    store_in_fp8(opened.network)
    assert sum(weight.nbytes for weight in opened.network.parameters()) == before - linear // 2
    z, index, condition = torch.randn(1, 16, 8, 8), torch.tensor([300]), shards.read_prompts(data)[0]
    rough, exact = shaken(SharedBase(opened, RANKS)), shaken(shared(small))
    rough.enable_gradient_checkpointing()
    with torch.no_grad():
        expected = exact.teacher(z, index, condition)
        distance = (rough.teacher(z, index, condition) - expected).norm() / expected.norm()
    assert 0 < distance < 0.1
    made, pictures = objective(rough, data), batch(data)
    with torch.autocast("cpu", torch.bfloat16):
        made(pictures, Draws(0, [0, 1]), 0)["loss"].backward()
    found = gradients(made.base)
    assert len(found) == len(made.base.student_parameters()) + len(made.base.auxiliary_parameters())
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_the_curriculum_changes_over_once() -> None:
    config = TSDConfig(early_steps=10)
    stages = [config.stage(step) for step in range(20)]
    assert stages == [tsd_objective.EARLY] * 10 + [tsd_objective.LATE] * 10
    assert (tsd_objective.EARLY.latent, tsd_objective.LATE.latent) == (1, 0)
    assert (tsd_objective.EARLY.dasm_steps, tsd_objective.LATE.dasm_steps) == (1, 4)


def test_lpips_is_read_from_a_folder_and_missing_weights_are_said(small, data, tmp_path, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    network, linear = {}, {}
    names = [f"features.{number}" for number in alexnet.NUMBERS]
    for index, (name, spec) in enumerate(zip(names, alexnet.CONVOLUTIONS, strict=True)):
        fan_in = spec[0] * spec[2] ** 2
        network[f"{name}.weight"] = torch.randn(spec[1], spec[0], spec[2], spec[2], generator=generator) / fan_in**0.5
        network[f"{name}.bias"] = torch.randn(spec[1], generator=generator) * 0.1
        linear[f"lin{index}.model.1.weight"] = torch.rand(1, spec[1], 1, 1, generator=generator)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    assert features.find_lpips(None) is None
    with pytest.raises(UserError, match=r"alexnet\*.pth"):
        features.find_lpips(tmp_path)
    torch.save(network, tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save(linear, tmp_path / "alex.pth")
    lpips = features.find_lpips(tmp_path)
    x, y = (torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    assert float(lpips(x, x)) == 0 and float(lpips(x, y)) > 0
    stages = torch.nn.Sequential()
    for (a, b, kernel, stride, padding, pooled), name in zip(alexnet.CONVOLUTIONS, names, strict=True):
        layer = torch.nn.Conv2d(a, b, kernel, stride, padding)
        layer.load_state_dict({"weight": network[f"{name}.weight"], "bias": network[f"{name}.bias"]})
        stages.append(torch.nn.Sequential(*([torch.nn.MaxPool2d(3, 2)] if pooled else []), layer, torch.nn.ReLU()))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden, expected = [(image - shift[:, None, None]) / scale[:, None, None] for image in (x, y)], 0.0
    for index, stage in enumerate(stages):
        hidden = [stage(h) for h in hidden]
        u, v = (h / h.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10) for h in hidden)
        expected += float((linear[f"lin{index}.model.1.weight"] * (u - v) ** 2).sum(1).mean())
    assert float(lpips(x, y)) == pytest.approx(expected, rel=1e-4)
    made = TSDObjective(shared(small), *shards.read_prompts(data), TSDConfig(), lpips)
    made(batch(data), Draws(0, [0, 1]), 0)["loss"].backward()
    assert made.settings()["perceptual"] == "lpips" and not any("lpips" in name for name in gradients(made))


# Runs


def run(small, data) -> SDRun:
    return SDRun(small.folder, data, RANKS)


METHOD = TSDConfig(learning_rate=1e-3, auxiliary_learning_rate=1e-3, early_steps=2)


LOSSES = ("loss", "perceptual", "latent", "distillation", "auxiliary")


@pytest.fixture(scope="module")
def trained(small, data, tmp_path_factory) -> Path:
    """An unbroken run over both stages."""
    output = tmp_path_factory.mktemp("trained")
    assert sd_runs.train_tsd(run_config(output, validation=PHOTOS), run(small, data), METHOD, None) == output
    return output


def test_losses_are_finite_and_everything_is_logged(trained) -> None:
    for name in (*LOSSES, "gradient_norm/student", "gradient_norm/auxiliary", "learning_rate/auxiliary"):
        values = scalars(trained, name)
        assert sorted(values) == [1, 2, 3, 4] and all(np.isfinite(value) for value in values.values())
    assert set(scalars(trained, "validation/niqe")) == {2, 4}
    names = {path.name for path in trained.iterdir()}
    assert names == {"checkpoint.safetensors", "best", "log", "run.toml", "transformer.safetensors", "vae.safetensors"}
    assert (trained / "checkpoint.safetensors").stat().st_size < 20e6, "no frozen weights in there"


def test_a_resumed_run_gives_the_same_result(small, data, trained, tmp_path, monkeypatch) -> None:
    step = loop.training_step

    def stopped(*arguments):
        if arguments[-1] == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    config = run_config(tmp_path, validation=PHOTOS)
    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        sd_runs.train_tsd(config, run(small, data), METHOD, None)
    monkeypatch.setattr(loop, "training_step", step)
    sd_runs.train_tsd(config, run(small, data), METHOD, None)
    for name in ("transformer.safetensors", "vae.safetensors"):
        whole, parts = load_file(trained / name), load_file(tmp_path / name)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    for name in LOSSES:
        assert scalars(tmp_path, name) == scalars(trained, name)
    changes = (
        {"ranks": Ranks(8, 8, 8)},
        {"fp8": True},
        {"start": small.lora},
        {"teacher": small.lora / tsd_sr.FAMILY.files[0]},
    )
    for changed in changes:
        with pytest.raises(UserError, match="other settings"):
            sd_runs.train_tsd(config, replace(run(small, data), **changed), METHOD, None)


def test_the_files_are_the_published_kind(small, trained) -> None:
    weights, published = read_lora(trained), read_lora(small.lora)
    for part in ("network", "vae"):
        [ours], [theirs] = ([adapter.update for adapter in getattr(lora, part)] for lora in (weights, published))
        assert ours.keys() == theirs.keys()
        assert all(ours[m].down.shape == theirs[m].down.shape and ours[m].alpha is None for m in ours)
        assert any(layer.up.any() for layer in ours.values())


def test_the_result_is_what_was_validated(small, data, trained) -> None:
    """The merged LoRA, as people run it, gives the picture that training's own adapters give."""
    default, null = shards.read_prompts(data)
    made = TSDObjective(shared(small, start=trained), default, null, TSDConfig())
    lr = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    model = open_lora(small.folder, trained, embeddings=small.embeddings, dtype=torch.float32).model
    bare = replace(model, recipe=replace(model.recipe, shortest=0, color="none"))
    found = upscale(bare, lr, UpscaleOptions(4))
    assert (found - made.restore(lr, 0)).abs().max() < 2e-3
    plain = TSDObjective(shared(small), default, null, TSDConfig())
    assert (found - plain.restore(lr, 0)).abs().max() > 1e-2, "training changed something"


def test_sd35_medium_gets_a_lora_of_its_own(small, data, tmp_path) -> None:
    files = small_sd3.write_sd35(tmp_path / "sd35", small.folder / "vae")
    base = shaken(SharedBase(open_base(files.folder, torch.float32), RANKS))
    base.save(tmp_path / "lora")
    loaded = open_lora(files.folder, tmp_path / "lora", embeddings=small.embeddings, dtype=torch.float32)
    assert loaded.warnings == ()
    bare = replace(loaded.model, recipe=replace(loaded.model.recipe, shortest=0, color="none"))
    lr = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    assert (upscale(bare, lr, UpscaleOptions(4)) - objective(base, data).restore(lr, 0)).abs().max() < 2e-3
    with pytest.raises(UserError, match=r"LoRA for Stable Diffusion 3\.5 medium, .*: use Stable Diffusion 3\.5"):
        open_lora(small.folder, tmp_path / "lora", embeddings=small.embeddings)


def test_training_starts_from_published_files(small, data, tmp_path) -> None:
    base = shared(small, start=small.lora)
    base.save(tmp_path)
    for name in ("transformer.safetensors", "vae.safetensors"):
        ours, theirs = load_file(tmp_path / name), load_file(small.lora / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key].float(), theirs[key], rtol=1e-3, atol=1e-6) for key in ours)
    narrow = small_sd3.write(tmp_path / "other", (32, 64))
    with pytest.raises(UserError, match="does not fit the base"):
        shared(small, start=narrow.lora)


def test_training_starts_from_a_converted_file(small, tmp_path) -> None:
    convert(small.lora, tmp_path / "one.safetensors")
    first, second = (shared(small, start=start) for start in (small.lora, tmp_path / "one.safetensors"))
    for ours, theirs in zip(first.student_parameters(), second.student_parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_lora_of_another_kind_is_no_start(small, tmp_path) -> None:
    torch.save(small_peft.pisa_sr(small_unet.write(tmp_path / "base", "2.1-base")), tmp_path / "pisa_sr.pkl")
    with pytest.raises(UserError, match=r"pisa_sr.pkl is a PiSA-SR LoRA, which cannot be trained further"):
        shared(small, start=tmp_path / "pisa_sr.pkl")


def test_data_of_another_base_is_refused(small, data, tmp_path) -> None:
    samples = shards.ShardSamples(data, 0)[0]
    with pytest.raises(UserError, match="was not prepared for"):
        sd_runs._require_match(
            samples | {"z_h": torch.zeros(4, 8, 8)}, open_base(small.folder, torch.float32), run(small, data)
        )


@pytest.mark.slow
def test_the_command_line_and_two_processes(small, data, tmp_path) -> None:
    """Two processes give the losses of one with twice the batch; run.toml gives the run again."""
    options = ["--precision", "no", "--rank", 4, "--rank-vae", 4, "--rank-auxiliary", 4, "--steps", 2, "--workers", 0]
    options += ["--learning-rate", 1e-3, "--early-steps", 1, "--warmup", 1, "--base", small.folder]
    one = cli("train", "tsd", data, *options, "--batch", 2, "-o", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    assert "VAE encoder" in one.stdout and str(tmp_path / "one") in one.stdout
    two = cli("train", "tsd", data, *options, "--batch", 1, "-o", tmp_path / "two", launch=2)
    assert two.returncode == 0, two.stderr
    for name in LOSSES:
        assert scalars(tmp_path / "two", name) == pytest.approx(scalars(tmp_path / "one", name), rel=1e-4)
    spread = cli("train", "tsd", data, *options, "--batch", 1, "--shard", "-o", tmp_path / "spread", launch=2)
    assert spread.returncode == 0, spread.stderr
    for name in LOSSES:
        assert scalars(tmp_path / "spread", name) == pytest.approx(scalars(tmp_path / "two", name), rel=1e-6)
    again = cli("train", "tsd", "--config", tmp_path / "one" / "run.toml", "-o", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    first, second = (load_file(tmp_path / name / "transformer.safetensors") for name in ("one", "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    with safe_open(tmp_path / "one" / "checkpoint.safetensors", framework="pt") as checkpoint:
        assert json.loads(checkpoint.metadata()["onestep_sr_run"])["step"] == 2


SHARES = """
import torch
from pathlib import Path
from onestep_sr.sr_models.training.sd import runs as sd_runs
from onestep_sr.sr_models.training.loop import TrainConfig
from onestep_sr.sr_models.training.sd.shared_base import Ranks

run = sd_runs.SDRun(Path({base!r}), Path({data!r}), Ranks(4, 4, 4), shard=True)
_, base = sd_runs._opened(TrainConfig(Path("unused")), run)
counts = {{True: [0, 0], False: [0, 0]}}
for weight in base.network.parameters():
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    counts[weight.requires_grad][0] += local.numel()
    counts[weight.requires_grad][1] += weight.numel()
print("SHARES", counts[False][0] / counts[False][1], counts[True][0] / counts[True][1])
"""


@pytest.mark.slow
def test_each_process_holds_its_share_of_the_base_and_all_of_the_adapters(small, data, tmp_path) -> None:
    (tmp_path / "shares.py").write_text(SHARES.format(base=str(small.folder), data=str(data)))
    found = launched(tmp_path / "shares.py", processes=2)
    assert found.returncode == 0, found.stderr
    shares = [line.split()[1:] for line in found.stdout.splitlines() if line.startswith("SHARES")]
    assert len(shares) == 2
    for frozen, learning in shares:
        assert float(frozen) == pytest.approx(0.5, abs=0.01) and float(learning) == 1


@pytest.mark.slow
def test_sharding_the_base_needs_several_processes_and_plain_accelerate(small, data, tmp_path) -> None:
    options = ["--base", small.folder, "--shard", "--steps", 1, "--precision", "no", "-o", tmp_path / "run"]
    alone = cli("train", "tsd", data, *options)
    assert alone.returncode == 1 and "Sharing the base needs at least two processes" in alone.stderr
    wrapped = cli("train", "tsd", data, *options, launch=2, kind="--use_fsdp")
    assert wrapped.returncode == 1 and "accelerate is configured for FSDP" in wrapped.stderr


def test_the_auxiliary_tracks_the_student(small, data) -> None:
    made = objective(shaken(shared(small)), data)
    pictures = batch(data, range(4))
    condition = Condition(pictures["prompt"], pictures["pooled"])
    with torch.no_grad():
        z_s = made.student(pictures["lr"].float() / 255, None)
    optimizer, losses = torch.optim.Adam(made.base.auxiliary_parameters(), lr=1e-2), []
    for _ in range(30):
        losses.append(made.auxiliary_loss(z_s, condition, Draws(0, range(4))))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1]) < 0.8 * float(losses[0])


# U-Nets


@pytest.mark.parametrize("kind", small_unet.KINDS)
def test_a_u_net_trains_too(kind: str, tmp_path) -> None:
    """From pictures to LoRA files, over both stages; the student's step is the scheduler's own x_0, and the files
    give it on the command line, too."""
    base, pictures = small_unet.write(tmp_path / "base", kind), tmp_path / "pictures"
    pictures.mkdir()
    Image.effect_noise((80, 90), 50).convert("RGB").save(pictures / "photo.png")
    where = {"device": torch.device("cpu"), "dtype": torch.float32, "workers": 0, "report": lambda crops: None}
    sd_runs.prepare_data(pictures, tmp_path / "data", base, replace(CONFIG, crops=2), PromptSource(), **where)
    config = run_config(tmp_path / "run", steps=2, batch=1)
    sd_runs.train_tsd(config, SDRun(base, tmp_path / "data", RANKS), TSDConfig(1e-3, 1e-3, early_steps=1), None)
    assert all(np.isfinite(value) for name in LOSSES for value in scalars(tmp_path / "run", name).values())

    trained = SharedBase(open_base(base, torch.float32), RANKS, start=tmp_path / "run")
    condition, null = shards.read_prompts(tmp_path / "data")
    condition = condition.to(torch.zeros(1))
    z_lr = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    added = {"text_embeds": condition.pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64.0]])}
    with torch.no_grad(), lora.active(trained.network, STUDENT):
        output = trained.network(z_lr, 999, condition.prompt, added_cond_kwargs=added).sample
        expected = scheduler.step(output, 999, z_lr).pred_original_sample
        found = trained.student(z_lr, condition)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    with torch.no_grad():
        plain = SharedBase(open_base(base, torch.float32), RANKS).student(z_lr, condition)
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max(), "training changed something"

    lr = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    model = open_lora(base, tmp_path / "run", dtype=torch.float32).model
    bare = replace(model, recipe=replace(model.recipe, shortest=0, color="none"))
    validated = TSDObjective(trained, condition, null, TSDConfig()).restore(lr, 0)
    assert (upscale(bare, lr, UpscaleOptions(4)) - validated).abs().max() < 2e-3


@pytest.mark.parametrize("kind", ["1.5", "SDXL"])
def test_a_u_nets_prompt_is_encoded_as_diffusers_does(kind: str, tmp_path) -> None:
    base, place = small_unet.write(tmp_path / "base", kind), torch.device("cpu")
    pipeline = DiffusionPipeline.from_pretrained(base, safety_checker=None)
    encoded = pipeline.encode_prompt("a cat", device=place, num_images_per_prompt=1, do_classifier_free_guidance=False)
    found = open_text_encoders(base, device=place, dtype=torch.float32)("a cat")
    assert torch.allclose(found.prompt, encoded[0], atol=1e-5)
    assert torch.allclose(found.pooled, encoded[2], atol=1e-5) if kind == "SDXL" else found.pooled.shape == (1, 0)


def test_code_in_a_bases_folder_is_not_run(tmp_path) -> None:
    base = small_unet.write(tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": ["evil", "Evil"]}))
    (base / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil: ...\n")
    open_text_encoders(base, device=torch.device("cpu"), dtype=torch.float32)("a cat")
    assert not (base / "ran").exists()


def test_a_vae_that_overflows_in_half_precision_runs_in_float32(tmp_path) -> None:
    base = small_unet.write(tmp_path / "base")
    shaken(SharedBase(open_base(base, torch.float32), RANKS)).save(tmp_path / "lora")
    loaded = open_lora(base, tmp_path / "lora", dtype=torch.float16)
    assert [next(module.parameters()).dtype for module in loaded.modules] == [torch.float16, torch.float32]


def test_bases_and_loras_of_two_kinds_are_told_apart(small, tmp_path) -> None:
    base = small_unet.write(tmp_path / "base")
    shaken(SharedBase(open_base(base, torch.float32), RANKS)).save(tmp_path / "lora")
    weights = read_lora(tmp_path / "lora")
    summary = convert(tmp_path / "lora", tmp_path / "one.safetensors")
    assert summary == "Self-trained (tsd-sr): U-Net LoRA, rank 4; VAE encoder LoRA, rank 4"
    one = read_lora(tmp_path / "one.safetensors")
    assert one.base == weights.base and one.base.network == "unet"
    for ours, theirs in ((one.network, weights.network), (one.vae, weights.vae)):
        assert [adapter.update.keys() for adapter in ours] == [adapter.update.keys() for adapter in theirs]
    with pytest.raises(
        UserError,
        match="is a TSD-SR LoRA for Stable Diffusion 3 medium, but the base is a Stable Diffusion with a U-Net",
    ):
        open_lora(base, small.lora)
    with pytest.raises(
        UserError,
        match="is a self-trained LoRA for a Stable Diffusion with a U-Net, but the base is Stable Diffusion 3",
    ):
        open_lora(small.folder, tmp_path / "lora", embeddings=small.embeddings)
    for name in ("transformer.safetensors", "unet.safetensors"):
        (tmp_path / "both").mkdir(exist_ok=True)
        (tmp_path / "both" / name).touch()
    with pytest.raises(UserError, match="two kinds of base"):
        read_lora(tmp_path / "both")
    with pytest.raises(UserError, match=r"does not contain .*transformer\.safetensors"):
        read_lora(base)
    other = small_unet.write(tmp_path / "other", "SDXL")
    with pytest.raises(UserError, match="use a Stable Diffusion with a U-Net"):
        open_lora(other, tmp_path / "lora")


@pytest.mark.parametrize(
    ("width", "name"), [(768, "Stable Diffusion 1.5"), (1024, "Stable Diffusion 2.1"), (2048, "SDXL")]
)
def test_a_u_nets_lora_names_its_base(width: int, name: str) -> None:
    layer = LowRank(torch.zeros(4, width), torch.zeros(64, 4))
    update = {"down_blocks.0.attentions.0.attn2.to_k": layer}
    assert str(lora_files.base_of(update, lora_files.UNET)) == name


def test_sdxl_is_told_the_pictures_size() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    seen = {}
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    condition = Condition(torch.randn(2, 7, 16), torch.randn(2, 24))
    output = UNET.call(unet, torch.randn(2, 4, 8, 16), torch.tensor([999, 5]), condition)
    assert output.shape == (2, 4, 8, 16)
    assert seen["added_cond_kwargs"]["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]] * 2
