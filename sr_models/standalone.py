"""TSD-SR without a host: Stable Diffusion 3 from diffusers, with the LoRA merged into its weights.

The base is a diffusers folder, or a single checkpoint file in Stability's own layout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints import prompt_embeddings
from .checkpoints.lora_fit import require_fit
from .checkpoints.low_rank import Update, merge
from .checkpoints.prompt_embeddings import PromptEmbeddings
from .checkpoints.weights_file import read_weights
from .codecs.autoencoder import AutoencoderCodec
from .core.model import Result, SRModel
from .core.network_denoiser import ACCELERATOR_TILES
from .core.step import Network
from .errors import UserError
from .families import one_step_lora
from .families.one_step_lora import SD3_MEDIUM, SD35_MEDIUM, TSDWeights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel
from .families.one_step_lora import choose_recipe

SCALING = 1.5305
LATENT_CHANNELS = 16
HEAD_WIDTH = 64
TRANSFORMER_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."

Predict = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StandaloneModel:
    """An SR model, the torch modules in it, and what its user should know though it runs; empty for nothing."""

    model: SRModel
    modules: tuple[nn.Module, ...]
    warning: str


@dataclass(frozen=True)
class Placement:
    """Where modules compute, and whether they rest on the CPU between uses, for small cards."""

    device: torch.device
    offload: bool = False

    @contextmanager
    def on_device(self, module: nn.Module):
        module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to("cpu")


def load_sd3(
    base: Path,
    lora: Path,
    *,
    embeddings: Path | None = None,
    prompt: str | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
    offload: bool = False,
    budget: int | None = None,
) -> StandaloneModel:
    """Stable Diffusion 3 with TSD-SR's LoRA as an SR model.

    Args:
        base: a diffusers folder (`transformer/`, `vae/`, ...), or a single-file checkpoint.
        lora: as `tsd_sr.read` takes it.
        embeddings: as `read_embeddings` takes it; None takes the ones that come with the LoRA. Where there are
            none, or a prompt is given, the folder's text encoders encode the prompt once and are let go.
        prompt: None is the published one.
        recipe: `tsd-sr` or `tsd-sr-mse`, in place of what the LoRA's name stands for.
        dtype: of the weights and the computation.
        offload: keep transformer and VAE on the CPU while the other one works.
        budget: of the VAE, as `AutoencoderCodec` takes it.

    Raises:
        UserError: where diffusers is missing or does not suit the rest, and for files that are missing or broken,
            or that do not belong together.
    """
    require_diffusers()
    weights = one_step_lora.read(lora)
    if weights.unet:
        raise UserError(f"{weights.name} is a LoRA for {weights.base}: give a diffusers folder of it as the base.")
    chosen, placement = choose_recipe(recipe or weights.recipe), Placement(device or torch.device("cpu"), offload)
    condition = _published_embeddings(weights, embeddings, prompt)
    if condition is None:
        condition = encode_prompt(base, prompt or chosen.prompt, device=placement.device, dtype=dtype)
    transformer, vae = open_networks(base, dtype)
    warning = _check_base(transformer, weights)
    merge_update(transformer, weights.transformer, weights.name, "the base's transformer", weights.base)
    merge_update(vae, weights.vae, weights.name, "the base's VAE", weights.base)
    denoiser = PromptedDenoiser(transformer, call_transformer, condition, placement)
    model = SRModel(chosen, denoiser, LatentCodec(vae, placement, SCALING, budget))
    return StandaloneModel(model, (transformer, vae), warning)


def require_diffusers() -> None:
    """Raise UserError where diffusers is missing, or does not suit the rest."""
    try:
        from diffusers import SD3Transformer2DModel  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the second where it does not suit another package's version
        reason = str(error).splitlines()[0]
        raise UserError(
            f"TSD-SR needs diffusers, which cannot be imported here ({reason}): install one that suits the torch and "
            "transformers that are here, 0.31.0 or newer."
        ) from error


def require_transformers(instead: str) -> None:
    """Raise UserError where transformers is missing; `instead` ends the sentence with what else would do."""
    from diffusers.utils import is_transformers_available

    if not is_transformers_available():
        raise UserError(f"Encoding a prompt needs a package: pip install transformers{instead}.")


def merge_update(network: nn.Module, update: Update, name: str, target: str, base: str) -> None:
    """Add an update to a network's weights. Raises UserError where it does not fit; arguments as `require_fit`'s."""
    weights = {name.removesuffix(".weight"): tensor for name, tensor in network.named_parameters()}
    require_fit(update, {name: tuple(tensor.shape) for name, tensor in weights.items()}, name, target, base)
    for module, layer in update.items():
        weights[module].data = merge(weights[module].data, layer)


class PromptedDenoiser:
    """A diffusers network with its prompt, as a denoiser.

    predict: network, latent (B, c, h, w) float32 on its device, timestep (B,), prompt and pooled prompt -> prediction.
    """

    def __init__(self, network: Any, predict: Predict, condition: PromptEmbeddings, placement: Placement):
        self.network, self.predict, self.placement = network, predict, placement
        self.prompt = condition.prompt.to(placement.device, network.dtype)
        self.pooled = condition.pooled.to(placement.device, network.dtype)

    def run(self, work: Callable[[Network], Result], shape: tuple[int, ...]) -> Result:
        with self.placement.on_device(self.network):
            return work(self._run)

    def tiles_at_once(self, shape: tuple[int, ...]) -> int:
        return 1 if self.placement.device.type == "cpu" else ACCELERATOR_TILES

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def in_float32(self) -> PromptedDenoiser:
        exact, condition = copy.deepcopy(self.network).float(), PromptEmbeddings(self.prompt, self.pooled)
        return PromptedDenoiser(exact, self.predict, condition, self.placement)

    @torch.no_grad()
    def _run(self, latent: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        device, count = self.placement.device, len(latent)
        prompt, pooled = self.prompt.expand(count, -1, -1), self.pooled.expand(count, -1)
        prediction = self.predict(self.network, latent.to(device), timestep.to(device), prompt, pooled)
        return prediction.to(latent.device, torch.float32)


def call_transformer(network: Any, z_t: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """Stable Diffusion 3's velocity for latents (B, 16, h, w) at timesteps (B,), in the prompt's precision."""
    return network(
        hidden_states=z_t.to(prompt.dtype),
        timestep=timestep,
        encoder_hidden_states=prompt,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


class LatentCodec(AutoencoderCodec):
    """diffusers' VAE as a codec, in one-step latents: the posterior's mode, scaled and not shifted."""

    def __init__(self, vae: Any, placement: Placement, scaling: float, budget: int | None = None):
        super().__init__(vae, 8, vae.config.latent_channels, scaling, budget)
        self.placement = placement

    def encode(self, image: Tensor) -> Tensor:
        with self.placement.on_device(self.autoencoder):
            return super().encode(image.clamp(0, 1))

    def decode(self, latent: Tensor) -> Tensor:
        with self.placement.on_device(self.autoencoder):
            return super().decode(latent)


# Opening the base


def open_networks(base: Path, dtype: torch.dtype) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    """Transformer and VAE of a diffusers folder or a checkpoint file, frozen, on the CPU.

    Raises UserError for files that are missing, broken or of another model.
    """
    return _open_folder(base, dtype) if base.is_dir() else _open_file(base, dtype)


def _open_folder(base: Path, dtype: torch.dtype) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    for part in ("transformer", "vae"):
        if not (base / part / "config.json").is_file():
            raise UserError(
                f"{base} is no diffusers folder of {SD3_MEDIUM} (it lacks {part}/config.json): name the folder that "
                "holds model_index.json, or a single-file checkpoint."
            )
    try:
        transformer = SD3Transformer2DModel.from_pretrained(str(base), subfolder="transformer", torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(str(base), subfolder="vae", torch_dtype=dtype)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{base} cannot be read as {SD3_MEDIUM} ({reason}): download it again.") from error
    return transformer.eval().requires_grad_(False), vae.eval().requires_grad_(False)


def _open_file(path: Path, dtype: torch.dtype) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import (
        convert_ldm_vae_checkpoint,
        convert_sd3_transformer_checkpoint_to_diffusers,
    )

    file = read_weights(path)
    transformer = _under(file.tensors, TRANSFORMER_PREFIX)
    vae = _under(file.tensors, VAE_PREFIX)
    if "joint_blocks.0.x_block.attn.qkv.weight" not in transformer:
        raise UserError(f"{path.name} holds no Stable Diffusion 3 transformer: choose a checkpoint of {SD3_MEDIUM}.")
    if "encoder.conv_in.weight" not in vae:
        raise UserError(
            f"{path.name} holds a transformer without its VAE: choose a whole checkpoint of {SD3_MEDIUM}, "
            "or a diffusers folder."
        )
    with torch.device("meta"):
        network = SD3Transformer2DModel(**_transformer_config(transformer))
        autoencoder = AutoencoderKL(**_vae_config(vae))
    try:
        _fill(network, convert_sd3_transformer_checkpoint_to_diffusers(dict(transformer)), dtype)
        _fill(autoencoder, convert_ldm_vae_checkpoint(dict(vae), autoencoder.config), dtype)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path.name} is no complete Stable Diffusion 3 checkpoint ({reason}): download it again."
        ) from error
    return network, autoencoder


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _transformer_config(tensors: dict[str, Tensor]) -> dict:
    """diffusers' configuration of a checkpoint, from its shapes."""
    width = tensors["x_embedder.proj.weight"].shape[0]
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("joint_blocks.")}
    dual = sorted(i for i in blocks if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors)
    return {
        "num_layers": max(blocks) + 1,
        "num_attention_heads": width // HEAD_WIDTH,
        "attention_head_dim": HEAD_WIDTH,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
        "caption_projection_dim": tensors["context_embedder.weight"].shape[0],
        "pooled_projection_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
        "pos_embed_max_size": round(tensors["pos_embed"].shape[1] ** 0.5),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in tensors else None,
        "dual_attention_layers": tuple(dual),
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "sample_size": 128,
        "patch_size": 2,
    }


def _vae_config(tensors: dict[str, Tensor]) -> dict:
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down."))
    widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def _fill(network: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)


def _check_base(transformer: SD3Transformer2DModel, weights: TSDWeights) -> str:
    if not transformer.config.get("qk_norm"):
        return ""
    if not transformer.config.get("dual_attention_layers"):
        raise UserError(
            f"{weights.name} is a TSD-SR LoRA for {weights.base}, but the base is Stable Diffusion 3.5 large: "
            f"name a checkpoint of {weights.base}."
        )
    return "" if weights.base == SD35_MEDIUM else one_step_lora.SD35_WARNING


# Prompt


def _published_embeddings(weights: TSDWeights, embeddings: Path | None, prompt: str | None) -> PromptEmbeddings | None:
    if embeddings is not None:
        return prompt_embeddings.read_embeddings(embeddings)
    return weights.embeddings if prompt is None else None


def encode_prompt(base: Path, prompt: str, *, device: torch.device, dtype: torch.dtype) -> PromptEmbeddings:
    """Encode one text as `open_text_encoders` does; the encoders are let go afterwards."""
    return open_text_encoders(base, device=device, dtype=dtype)(prompt)


def open_text_encoders(base: Path, *, device: torch.device, dtype: torch.dtype) -> Callable[[str], PromptEmbeddings]:
    """The text encoders of a diffusers folder: a function from a text to its embeddings.

    The third one, T5, may be missing: SD3 then gets zeros for its part. Raises UserError for a single-file
    checkpoint, and where the `transformers` package or the other two encoders are missing.
    """
    if not base.is_dir():
        raise UserError(
            f"{base.name} is a single file, which brings no tokenizers to encode the prompt with: give TSD-SR's "
            f"embeddings ({prompt_embeddings.PROMPT_FILE} and {prompt_embeddings.POOLED_FILE}), or a diffusers folder."
        )
    require_transformers(", or give TSD-SR's embeddings")
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    # Part by part: what a pipeline's own index names may be code in the folder.
    kinds: list[tuple[str, Any, Any]] = [
        ("", CLIPTextModelWithProjection, CLIPTokenizer),
        ("_2", CLIPTextModelWithProjection, CLIPTokenizer),
        ("_3", T5EncoderModel, AutoTokenizer),
    ]
    parts: dict[str, Any] = {"vae": None, "scheduler": FlowMatchEulerDiscreteScheduler()}
    try:
        for end, encoder, tokenizer in kinds:
            if end == "_3" and not (base / "text_encoder_3").is_dir():
                parts |= {"text_encoder_3": None, "tokenizer_3": None}
                continue
            parts[f"text_encoder{end}"] = encoder.from_pretrained(
                str(base), subfolder=f"text_encoder{end}", torch_dtype=dtype
            ).to(device)
            parts[f"tokenizer{end}"] = tokenizer.from_pretrained(str(base), subfolder=f"tokenizer{end}")
        # Where there is no T5, diffusers asks the transformer how wide its zeros have to be, and nothing else.
        with torch.device("meta"):
            config: Any = SD3Transformer2DModel.load_config(str(base), subfolder="transformer")
            parts["transformer"] = SD3Transformer2DModel.from_config(config)
        pipeline: Any = StableDiffusion3Pipeline(**parts)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _no_encoders(base, error) from error

    @torch.no_grad()
    def encode(prompt: str) -> PromptEmbeddings:
        try:
            encoded, _, pooled, _ = pipeline.encode_prompt(
                prompt, prompt_2=prompt, prompt_3=prompt, device=device, do_classifier_free_guidance=False
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:  # encoders that do not belong together
            raise _no_encoders(base, error) from error
        return PromptEmbeddings(encoded.cpu(), pooled.cpu())

    return encode


def _no_encoders(base: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(f"{base} has no text encoders that can be read ({reason}): give TSD-SR's embeddings instead.")
