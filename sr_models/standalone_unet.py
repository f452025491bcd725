"""One-step LoRAs on Stable Diffusion 1.5, 2.1 and SDXL without a host: the base from a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoints.prompt_embeddings import PromptEmbeddings
from .core.model import SRModel
from .core.process import Process, variance_preserving
from .errors import UserError
from .families import one_step_lora
from .families.one_step_lora import choose_recipe, on_unet
from .standalone import (
    LatentCodec,
    Placement,
    PromptedDenoiser,
    StandaloneModel,
    merge_update,
    require_diffusers,
    require_transformers,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def is_unet(base: Path) -> bool:
    """Whether it is a diffusers folder with a U-Net."""
    return (base / "unet").is_dir()


def load_unet(
    base: Path,
    lora: Path,
    *,
    prompt: str | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
    offload: bool = False,
    budget: int | None = None,
) -> StandaloneModel:
    """A Stable Diffusion with a U-Net and a one-step LoRA for it as an SR model.

    Arguments as `standalone.load_sd3` has them; the base is a diffusers folder, whose text encoders encode the prompt
    once and are let go. Raises UserError for files that are missing or broken, or that do not belong together.
    """
    require_diffusers()
    weights = one_step_lora.read(lora)
    if not weights.unet:
        raise UserError(f"{weights.name} is a LoRA for {weights.base}, and {base} has a U-Net: give the right base.")
    chosen = on_unet(choose_recipe(recipe or weights.recipe))
    placement = Placement(device or torch.device("cpu"), offload)
    condition = open_text_encoders(base, device=placement.device, dtype=dtype)(prompt or chosen.prompt)
    unet, vae, process = open_unet(base, dtype)
    merge_update(unet, weights.unet, weights.name, "the base's U-Net", weights.base)
    merge_update(vae, weights.vae, weights.name, "the base's VAE", weights.base)
    predict = partial(predict_clean, process.to(placement.device))
    denoiser = PromptedDenoiser(unet, predict, condition, placement)
    if needs_float32(vae, dtype):
        vae.float()
    codec = LatentCodec(vae, placement, float(vae.config.scaling_factor), budget)
    return StandaloneModel(SRModel(chosen, denoiser, codec), (unet, vae), "")


def predict_clean(
    process: Process, unet: Any, latent: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor
) -> Tensor:
    """x_0 for the LR's latent, taken for the process's noisiest input."""
    noisiest = torch.zeros(len(latent), dtype=torch.long, device=latent.device)
    output = call_unet(unet, latent.to(prompt.dtype), process.timesteps[noisiest], prompt, pooled)
    return process.x_0(output.float(), latent, noisiest)


def call_unet(unet: Any, z_t: Tensor, timesteps: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """A U-Net's prediction for latents (B, c, h, w) at timesteps (B,). `pooled` (B, 0) for all but SDXL, which is also
    told the picture's size, and that nothing is cropped."""
    added = None
    if pooled.shape[-1]:
        height, width = (8 * side for side in z_t.shape[-2:])
        sizes = z_t.new_tensor([height, width, 0, 0, height, width]).expand(len(z_t), -1)
        added = {"text_embeds": pooled, "time_ids": sizes}
    return unet(z_t, timesteps, encoder_hidden_states=prompt, added_cond_kwargs=added, return_dict=False)[0]


def open_unet(base: Path, dtype: torch.dtype) -> tuple[UNet2DConditionModel, Any, Process]:
    """U-Net, VAE and noise process of a diffusers folder, frozen, on the CPU.

    Raises UserError for files that are missing or broken, and for bases that predict something else than noise or v.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    try:
        unet = UNet2DConditionModel.from_pretrained(str(base), subfolder="unet", torch_dtype=dtype)
        vae: Any = AutoencoderKL.from_pretrained(str(base), subfolder="vae", torch_dtype=dtype)
        scheduler: Any = DDPMScheduler.from_pretrained(str(base), subfolder="scheduler")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{base} cannot be read as a Stable Diffusion folder ({reason}): download it again.") from error
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{base} predicts {kind!r}, which one step cannot use: choose a base of epsilon or v_prediction."
        )
    process = variance_preserving("v" if kind == "v_prediction" else "epsilon", scheduler.alphas_cumprod)
    return unet.eval().requires_grad_(False), vae.eval().requires_grad_(False), process


def needs_float32(vae: Any, dtype: torch.dtype) -> bool:
    """Whether the VAE overflows in that precision, as SDXL's does in half."""
    return dtype == torch.float16 and bool(vae.config.get("force_upcast"))


def open_text_encoders(base: Path, *, device: torch.device, dtype: torch.dtype) -> Callable[[str], PromptEmbeddings]:
    """The folder's text encoders: a function from a text to its embeddings, pooled (1, 0) where the base takes none.

    SDXL takes both encoders' last layer but one, the others their only encoder's last. Raises UserError where the
    `transformers` package or the encoders are missing.
    """
    require_transformers("")
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    kinds: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
    ends = ["", "_2"] if (base / "text_encoder_2").is_dir() else [""]
    try:
        tokenizers: list[Any] = [CLIPTokenizer.from_pretrained(str(base), subfolder=f"tokenizer{end}") for end in ends]
        encoders = [
            kind.from_pretrained(str(base), subfolder=f"text_encoder{end}", torch_dtype=dtype).to(device)
            for kind, end in zip(kinds, ends, strict=False)
        ]
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{base} has no text encoders that can be read ({reason}): download the whole folder."
        ) from error

    @torch.no_grad()
    def encode(text: str) -> PromptEmbeddings:
        outputs = []
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            length = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
            tokens = tokenizer(text, return_tensors="pt", **length).input_ids
            outputs.append(encoder(tokens.to(device), output_hidden_states=True))
        if len(outputs) == 1:
            return PromptEmbeddings(outputs[0].last_hidden_state.float().cpu(), torch.zeros(1, 0))
        prompt = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return PromptEmbeddings(prompt.float().cpu(), outputs[-1].text_embeds.float().cpu())

    return encode
