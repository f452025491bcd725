"""TSD-SR with diffusers: file formats, the merged LoRA compared with peft, and the effect of possible mistakes."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_sd3
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from onestep_sr.sr_models.canvas.noise import canvas_noise
from onestep_sr.sr_models.checkpoints import low_rank, prompt_embeddings
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.diffusers_host.sd3_prompts import open_text_encoders
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import lora_files
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.families.tsd_sr import FAMILY, SD35_WARNING, TSD_SR
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

NARROW = (32, 32, 64, 64)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    return small_sd3.write(tmp_path_factory.mktemp("small"), NARROW)


@pytest.fixture(scope="module")
def sd35(small: small_sd3.SmallSD3, tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    return small_sd3.write_sd35(tmp_path_factory.mktemp("sd35"), small.folder / "vae")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def bare(model: SRModel) -> SRModel:
    """The method alone: no smallest size, no colour match."""
    return replace(model, recipe=replace(model.recipe, shortest=0, color="none"))


def opened(files: small_sd3.SmallSD3, base: Path | None = None, **options) -> SRModel:
    options = {"embeddings": files.embeddings, "dtype": torch.float32} | options
    return bare(open_lora(base or files.folder, files.lora, **options).model)


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


class Published:
    """The method from diffusers and peft alone, with places for mistakes. Adapters stay beside the weights."""

    def __init__(self, files: small_sd3.SmallSD3):
        self.transformer = SD3Transformer2DModel.from_pretrained(files.folder / "transformer").eval()
        self.vae = AutoencoderKL.from_pretrained(files.folder / "vae").eval()
        for network, modules, name in (
            (self.transformer, small_sd3.TRANSFORMER_MODULES, "transformer"),
            (self.vae, small_sd3.VAE_MODULES, "vae"),
        ):
            network.add_adapter(LoraConfig(r=small_sd3.RANK, lora_alpha=small_sd3.RANK, target_modules=modules))
            halves = load_file(files.lora / f"{name}.safetensors")
            stripped = {key.removeprefix("transformer."): half for key, half in halves.items()}
            result = set_peft_model_state_dict(network, stripped)
            assert not result.unexpected_keys
        self.prompt = torch.load(files.embeddings / "prompt_embeds.pt", weights_only=True)
        self.pooled = torch.load(files.embeddings / "pool_embeds.pt", weights_only=True)

    def velocity(self, z: torch.Tensor, timestep: float = 1000.0, null: bool = False) -> torch.Tensor:
        prompt, pooled = (0 * self.prompt, 0 * self.pooled) if null else (self.prompt, self.pooled)
        return self.transformer(
            hidden_states=z,
            timestep=torch.tensor([timestep]),
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, *, shift=0.0, timestep=1000.0, guidance=1.0, noise=0.0, start_noise=0.0
    ) -> torch.Tensor:
        z = 1.5305 * (self.vae.encode(image * 2 - 1).latent_dist.mode() - shift)
        generator = torch.Generator().manual_seed(3)
        if start_noise:
            z = torch.randn(z.shape, generator=generator)
        z = z + noise * torch.randn(z.shape, generator=generator)
        v = self.velocity(z, timestep)
        if guidance != 1:
            null = self.velocity(z, timestep, null=True)
            v = null + guidance * (v - null)
        return self.vae.decode((z - v) / 1.5305 + shift).sample / 2 + 0.5


@pytest.fixture(scope="module")
def published(small: small_sd3.SmallSD3) -> Published:
    return Published(small)


@pytest.fixture(scope="module")
def truth(published: Published, image: torch.Tensor) -> torch.Tensor:
    return published(image)


@pytest.mark.parametrize("base", ["folder", "checkpoint"])
def test_the_merged_lora_gives_what_peft_gives(base, small, image, truth):
    result = upscale(opened(small, getattr(small, base)), image, UpscaleOptions(1))
    assert (truth == truth.clamp(0, 1)).float().mean() > 0.98, "clamping would hide differences"
    assert (result - truth.clamp(0, 1)).abs().max() < TOLERANCE


MISTAKES = {
    "shift applied": {"shift": 0.0609},
    "noise added": {"noise": 0.05},
    "start from noise": {"start_noise": 1.0},
    "guidance applied": {"guidance": 1.5},
    "timestep off by one": {"timestep": 999.0},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(mistake, image, published, truth):
    """Ten times the tolerance at least, so that the comparison with the published way catches it."""
    assert (published(image, **MISTAKES[mistake]) - truth).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    "mistake", ["transformer LoRA ignored", "VAE LoRA ignored", "norm_out halves swapped", "pos_embed.proj dropped"]
)
def test_each_mistake_in_loading_would_show(mistake, small, image, truth):
    wrong = Published(small)
    if mistake == "transformer LoRA ignored":
        wrong.transformer.disable_adapters()
    elif mistake == "VAE LoRA ignored":
        wrong.vae.disable_adapters()
    elif mistake == "norm_out halves swapped":
        up = wrong.transformer.norm_out.linear.lora_B["default"].weight
        up.data = small_sd3.halves_swapped(up.data)
    else:
        wrong.transformer.pos_embed.proj.lora_B["default"].weight.data.zero_()
    assert (wrong(image) - truth).abs().max() > 10 * TOLERANCE


@torch.no_grad()
def test_a_step_may_start_from_noise_inside_the_process(small, image, published):
    """Flow matching at t = 250: z_t = 3/4 z + 1/4 n, z_0 = z_t - v / 4."""
    z = 1.5305 * published.vae.encode(image * 2 - 1).latent_dist.mode()
    z_t = 0.75 * z + 0.25 * canvas_noise(z, 0)
    expected = published.vae.decode((z_t - 0.25 * published.velocity(z_t, 250.0)) / 1.5305).sample / 2 + 0.5
    with small_sd3.step_of_tsd_sr(OneStep(250.0, noised=True)):
        result = upscale(opened(small), image, UpscaleOptions(1))
    assert (result - expected.clamp(0, 1)).abs().max() < TOLERANCE


def test_the_decoder_keeps_its_weights(small):
    vae = AutoencoderKL.from_pretrained(small.folder / "vae")
    merged = opened(small).codec.autoencoder
    assert all(
        torch.equal(t, merged.state_dict()[name]) for name, t in vae.decoder.state_dict(prefix="decoder.").items()
    )
    assert not torch.equal(vae.encoder.conv_in.weight, merged.encoder.conv_in.weight)


def test_tiles_in_batches_change_nothing_and_large_tiles_are_exact(small, image):
    model = opened(small)
    tiled = [upscale(model, image, UpscaleOptions(1, tile=48, overlap=16, batch=batch)) for batch in (1, 3)]
    assert torch.allclose(*tiled, atol=1e-5)
    whole = upscale(model, image, UpscaleOptions(1))
    assert 1e-4 < (tiled[0] - whole).abs().mean() < 0.1
    assert torch.equal(upscale(model, image, UpscaleOptions(1, tile=3072)), whole)


def test_small_results_are_computed_larger_and_shrunk(small):
    """Trained on 512 px: a result of 64 px per side is computed at 512 and shrunk to its exact size."""
    model = open_lora(small.folder, small.lora, embeddings=small.embeddings, dtype=torch.float32).model
    seen = []
    photo = torch.rand(1, 3, 16, 21, generator=torch.Generator().manual_seed(1))
    result = upscale(model, photo, UpscaleOptions(4), progress=lambda done, total, preview: seen.append(preview.shape))
    assert result.shape == (1, 3, 64, 84)
    assert seen[-1] == (3, 64, 84)  # latent pixels: 512 and 672 px


def test_offloading_and_low_precision_give_the_same_picture(small, image):
    exact = upscale(opened(small), image, UpscaleOptions(1))
    offloaded = opened(small, offload=True, budget=2**26)
    assert torch.equal(upscale(offloaded, image, UpscaleOptions(1)), exact) and offloaded.codec.budget == 2**26
    rough = upscale(opened(small, dtype=torch.bfloat16), image, UpscaleOptions(1))
    assert 0 < (rough - exact).abs().mean() < 0.02


# Formats


def test_the_single_file_holds_everything(small, image, tmp_path):
    weights = replace(read_lora(small.lora), embeddings=prompt_embeddings.read_embeddings(small.embeddings))
    lora_files.save(tmp_path / "mine.safetensors", weights)
    single = open_lora(small.folder, tmp_path / "mine.safetensors", dtype=torch.float32).model
    assert torch.equal(
        upscale(bare(single), image, UpscaleOptions(1)), upscale(opened(small), image, UpscaleOptions(1))
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    assert describe(tmp_path / "mine.safetensors") == (
        "TSD-SR (tsd-sr): transformer LoRA, rank 4; VAE encoder LoRA, rank 4; prompt embeddings"
    )


def test_the_recipe_follows_the_folders_name_and_survives_conversion(small, tmp_path):
    shutil.copytree(small.lora, tmp_path / "tsdsr-mse")
    weights = read_lora(tmp_path / "tsdsr-mse")
    assert weights.recipe == "tsd-sr-mse" and FAMILY.recipes[weights.recipe].color == "adain"
    lora_files.save(tmp_path / "renamed.safetensors", weights)
    assert read_lora(tmp_path / "renamed.safetensors").recipe == "tsd-sr-mse"
    assert read_lora(small.lora).recipe == "tsd-sr" and TSD_SR.color == "wavelet"


def sizes(lora) -> tuple[int, ...]:
    """How many modules each adapter changes."""
    return tuple(len(adapter.update) for adapter in (*lora.network, *lora.vae))


def test_each_file_is_recognised_by_its_keys_and_finds_the_second_file(small, tmp_path):
    parts = [describe(small.lora / name) for name in ("transformer.safetensors", "vae.safetensors")]
    assert parts == ["TSD-SR (tsd-sr): transformer LoRA, rank 4", "TSD-SR (tsd-sr): VAE encoder LoRA, rank 4"]
    for first in ("transformer", "vae"):
        weights = read_lora(small.lora / f"{first}.safetensors")
        assert sizes(weights) == (24, 30)
    for name, new in (("transformer", "one"), ("vae", "two")):
        shutil.copy(small.lora / f"{name}.safetensors", tmp_path / f"{new}.safetensors")
    crossed = read_lora(tmp_path / "two.safetensors", tmp_path / "one.safetensors")
    assert sizes(crossed) == (24, 30)
    assert "is one part of a TSD-SR LoRA" in refusal(read_lora, tmp_path / "one.safetensors")
    assert "are both for the VAE encoder" in refusal(
        read_lora, small.lora / "vae.safetensors", tmp_path / "two.safetensors"
    )


def test_names_of_files_are_compared_without_case(small, tmp_path):
    for name in ("transformer", "vae"):
        shutil.copy(small.lora / f"{name}.safetensors", tmp_path / f"{name.upper()}.SAFETENSORS")
    for name in ("prompt_embeds", "pool_embeds"):
        shutil.copy(small.embeddings / f"{name}.pt", tmp_path / f"{name}.PT")
    for path in (tmp_path, tmp_path / "VAE.SAFETENSORS"):
        assert sizes(read_lora(path)) == (24, 30) and read_lora(path).embeddings is not None
    assert prompt_embeddings.read_embeddings(tmp_path / "pool_embeds.PT").pooled.shape == (1, 2048)


def test_alpha_scales_the_update():
    down, up = torch.randn(2, 5, 3, 3), torch.randn(7, 2, 1, 1)
    tensors = {"conv.lora_A.weight": down, "conv.lora_B.weight": up, "conv.alpha": torch.tensor(6.0)}
    [layer] = low_rank.parse(tensors, "file").values()
    expected = 3 * torch.einsum("or,rikl->oikl", up.double().flatten(1), down.double())
    merged = low_rank.merge(torch.zeros(7, 5, 3, 3), layer, strength=0.5)
    assert torch.allclose(merged.double(), 0.5 * expected, atol=1e-5)
    assert low_rank.to_tensors({"conv": layer}).keys() == tensors.keys()


def changed(path: Path, target: Path, change) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, target)
    return target


def drop(key: str):
    return lambda tensors: tensors.pop(key)


def put(key: str, value):
    return lambda tensors: tensors.__setitem__(key, value(tensors))


ONE = "transformer.transformer_blocks.0.attn.to_q.lora_"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop(f"{ONE}B.weight"), "is incomplete (it lacks transformer_blocks.0.attn.to_q.lora_B.weight)"),
        (
            put(f"{ONE}B.weight", lambda t: t[f"{ONE}B.weight"][:, :2].clone()),
            "matrices of shapes (4, 128) and (128, 2)",
        ),
        (put(f"{ONE}A.weight", lambda t: t[f"{ONE}A.weight"] * float("nan")), "not finite"),
        (put("transformer.extra.weight", lambda t: torch.zeros(2)), "not a LoRA's (extra.weight)"),
    ],
    ids=["half missing", "ranks differ", "not finite", "stranger"],
)
def test_broken_files_end_in_one_sentence(change, words, small, tmp_path):
    path = changed(small.lora / "transformer.safetensors", tmp_path / "transformer.safetensors", change)
    assert words in refusal(read_lora, path)


def move(old: str, new: str):
    def change(tensors):
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            move("blocks.1.attn.to_q", "blocks.1.attn.to_x"),
            "lacks 1 of the LoRA's modules (transformer_blocks.1",
        ),
        (move("transformer_blocks.1.", "transformer_blocks.7."), "lacks 10 of the LoRA's modules"),
        (
            lambda tensors: [tensors.pop(key) for key in list(tensors) if "transformer_blocks.1." in key],
            "changes only 1 of the 2 transformer blocks of the base's transformer",
        ),
        (
            put(f"{ONE}A.weight", lambda t: torch.zeros(4, 64)),
            "1 modules of the base's transformer have other shapes (transformer_blocks.0.attn.to_q has (128, 128)",
        ),
    ],
    ids=["unknown module", "unknown block", "block missing", "other shape"],
)
def test_a_lora_that_does_not_fit_is_rejected_completely(change, words, small, tmp_path):
    shutil.copy(small.lora / "vae.safetensors", tmp_path)
    changed(small.lora / "transformer.safetensors", tmp_path / "transformer.safetensors", change)
    message = refusal(open_lora, small.folder, tmp_path, embeddings=small.embeddings, dtype=torch.float32)
    assert words in message and "Stable Diffusion 3 medium" in message


def without(*modules: str):
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if any(f".{m}.lora_" in key for m in modules)]


def only(*modules: str):
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if not any(f".{m}.lora_" in key for m in modules)]


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (
            "transformer",
            without("transformer_blocks.1.norm1_context.linear"),
            "1 of the 24 modules of the base's transformer that it should change are missing "
            "(transformer_blocks.1.norm1_context.linear)",
        ),
        (
            "transformer",
            only("pos_embed.proj", "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"),
            "21 of the 24 modules of the base's transformer that it should change are missing (norm_out.linear, "
            "proj_out, transformer_blocks.0.attn.add_k_proj,",
        ),
        (
            "vae",
            only("encoder.conv_in"),
            "29 of the 30 modules of the base's VAE that it should change are missing (encoder.conv_out, ",
        ),
    ],
    ids=["one missing", "few kept", "VAE"],
)
def test_a_part_of_a_lora_is_rejected(part, change, words, small, tmp_path):
    shutil.copytree(small.lora, tmp_path / "lora")
    changed(small.lora / f"{part}.safetensors", tmp_path / "lora" / f"{part}.safetensors", change)
    message = refusal(open_lora, small.folder, tmp_path / "lora", embeddings=small.embeddings, dtype=torch.float32)
    assert words in message and message.endswith("): download it again.")


def test_other_loras_for_sd3_are_not_taken_for_tsd_sr(small, tmp_path):
    def style(tensors):
        for key in [key for key in tensors if ".attn." not in key]:
            tensors.pop(key)

    path = changed(small.lora / "transformer.safetensors", tmp_path / "style.safetensors", style)
    assert refusal(read_lora, path) == "style.safetensors is a LoRA that is not for upscaling: choose it in Load LoRA."


def test_a_lora_given_as_a_model_says_where_it_belongs(small):
    assert "use Apply One-Step SR LoRA" in refusal(load, small.lora / "transformer.safetensors")


# Bases and prompts


def test_sd35_medium_runs_with_a_warning(small, sd35, image):
    loaded = open_lora(sd35.folder, small.lora, embeddings=small.embeddings, dtype=torch.float32)
    assert loaded.warnings == (SD35_WARNING,)
    assert torch.isfinite(upscale(bare(loaded.model), image, UpscaleOptions(1))).all()
    merged = loaded.model.denoiser.network
    plain = SD3Transformer2DModel.from_pretrained(sd35.folder / "transformer")
    change = (merged.transformer_blocks[0].norm1.linear.weight - plain.transformer_blocks[0].norm1.linear.weight).abs()
    assert change[: 6 * 128].max() > 0 and change[6 * 128 :].max() == 0


def test_sd35_large_is_refused(small, tmp_path):
    transformer = small_sd3.build_transformer(qk_norm="rms_norm")
    transformer.save_pretrained(tmp_path / "transformer")
    shutil.copytree(small.folder / "vae", tmp_path / "vae")
    assert "3.5 large" in refusal(open_lora, tmp_path, small.lora, embeddings=small.embeddings)


def test_a_missing_diffusers_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        UserError, match=r"^A LoRA on a Stable Diffusion needs diffusers, which cannot be imported \(.*\): install"
    ):
        open_lora(small.checkpoint, small.lora, embeddings=small.embeddings)


def test_files_that_are_not_a_base_are_rejected(small, tmp_path):
    options = {"embeddings": small.embeddings}
    assert "lacks transformer/config.json" in refusal(open_lora, tmp_path, small.lora, **options)
    assert "does not contain a Stable Diffusion 3 transformer" in refusal(
        open_lora, small.lora / "vae.safetensors", small.lora, **options
    )
    tensors = load_file(small.checkpoint)
    save_file({k: t for k, t in tensors.items() if k.startswith("model.")}, tmp_path / "unet.safetensors")
    assert "without its VAE" in refusal(open_lora, tmp_path / "unet.safetensors", small.lora, **options)
    tensors.pop("model.diffusion_model.final_layer.linear.weight")
    save_file(tensors, tmp_path / "cut.safetensors")
    assert "not a complete Stable Diffusion 3 checkpoint" in refusal(
        open_lora, tmp_path / "cut.safetensors", small.lora, **options
    )


def test_embeddings_are_read_from_every_form(small, tmp_path):
    expected = prompt_embeddings.read_embeddings(small.embeddings)
    beside = prompt_embeddings.read_embeddings(small.embeddings / "pool_embeds.pt")
    save_file(prompt_embeddings.to_tensors(expected), tmp_path / "both.safetensors")
    single = prompt_embeddings.read_embeddings(tmp_path / "both.safetensors")
    for read in (beside, single):
        assert torch.equal(read.prompt, expected.prompt) and torch.equal(read.pooled, expected.pooled)


@pytest.mark.parametrize(
    ("prompt", "pooled", "words"),
    [
        (torch.zeros(1, 333, 4096), torch.zeros(1, 768), "(1, 768)"),
        (torch.zeros(333, 4096), torch.zeros(1, 2048), "(333, 4096)"),
        (torch.full((1, 3, 4096), torch.nan), torch.zeros(1, 2048), "not finite"),
        ({"a": torch.zeros(1)}, torch.zeros(1, 2048), "does not hold a single tensor"),
    ],
)
def test_files_without_embeddings_are_rejected(prompt, pooled, words, tmp_path):
    torch.save(prompt, tmp_path / "prompt_embeds.pt")
    torch.save(pooled, tmp_path / "pool_embeds.pt")
    assert words in refusal(prompt_embeddings.read_embeddings, tmp_path)


def test_a_single_file_base_needs_embeddings(small):
    message = refusal(open_lora, small.checkpoint, small.lora)
    assert "sd3.safetensors is a single file" in message and "prompt_embeds.pt" in message


def test_text_encoders_are_not_loaded_if_embeddings_are_given(small, monkeypatch):
    import transformers

    def never(*arguments, **options):
        raise AssertionError("a text encoder was loaded")

    monkeypatch.setattr(transformers.CLIPTextModelWithProjection, "from_pretrained", never)
    opened(small)
    with pytest.raises(AssertionError):
        open_lora(small.folder, small.lora)


def test_a_prompt_is_encoded_as_diffusers_does(small, tmp_path):
    """Without T5, which many people do not have: zeros take its place."""
    folder = tmp_path / "sd3"
    shutil.copytree(small.folder, folder)
    small_sd3.write_text_encoders(folder)
    import diffusers

    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    prompt, _, pooled, _ = pipeline.encode_prompt("a cat", "a cat", "a cat", do_classifier_free_guidance=False)
    encode = open_text_encoders(folder, device=torch.device("cpu"), dtype=torch.float32)
    encoded = encode("a cat")
    assert torch.allclose(encoded.prompt, prompt, atol=1e-5) and torch.allclose(encoded.pooled, pooled, atol=1e-5)
    assert encoded.prompt.shape == (1, 333, 4096) and not encoded.prompt[:, 77:].any()
    own = open_lora(folder, small.lora, prompt="a cat", dtype=torch.float32).model.conditioner.condition
    assert torch.allclose(own.prompt, prompt, atol=1e-5)
    published = open_lora(folder, small.lora, dtype=torch.float32).model.conditioner.condition
    expected = encode(TSD_SR.prompt)
    assert torch.equal(published.prompt, expected.prompt) and not torch.equal(published.prompt, own.prompt)
