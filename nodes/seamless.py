"""Nodes to encode and decode images of any size without seams, beside the stock VAE nodes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sr_models.canvas.wrap import WRAPS, Wrap
from . import host, host_vae
from .schema import advanced, schema

CATEGORY = host.menu_of("VAEDecode", "latent")
VAE_TOOLTIP = (
    "A VAE of Stable Diffusion 1.5, SDXL, SD3, Flux, Flux.2, Qwen-Image, Wan 2.1, Wan 2.2, Hunyuan Image 2.1, "
    "HunyuanVideo, LTX-Video 0.9.0, LTX-2 or TAESD."
)
MEMORY_TOOLTIP = "Memory to use on the VAE's device, in MB. 0: all free memory. Less is slower, with the same result."


def _wrap_input() -> Any:
    return advanced(
        io.Combo.Input(
            "wrap",
            optional=True,
            options=list(WRAPS),
            default=WRAPS[0],
            tooltip="For tileable textures and panoramas. x: the right border continues at the left one. y: the lower "
            "one at the upper.",
        )
    )


class EncodeSeamless(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRVAEEncode",
            search_aliases=["vae encode tiled", "large image", "out of memory"],
            display_name="VAE Encode (Seamless)",
            category=CATEGORY,
            description="VAE Encode for images of any size, within a memory budget. The result is the same as from VAE "
            "Encode, without tile borders.",
            inputs=[
                io.Image.Input(
                    "pixels",
                    tooltip="The image, of any size; sides are cropped as in VAE Encode.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip=VAE_TOOLTIP,
                ),
                io.Int.Input("memory", default=0, min=0, max=1_000_000, step=64, tooltip=MEMORY_TOOLTIP),
                _wrap_input(),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The same as from VAE Encode.")],
        )

    @classmethod
    def execute(cls, pixels, vae, memory: int, wrap: Wrap = "none") -> io.NodeOutput:
        latent = host_vae.encode(vae, pixels, memory * 2**20, host.Bar().stage, wrap)
        return io.NodeOutput({"samples": latent.to(host.intermediate_dtype())})


class DecodeSeamless(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRVAEDecode",
            search_aliases=["vae decode tiled", "large image", "out of memory", "seams"],
            display_name="VAE Decode (Seamless)",
            category=CATEGORY,
            description="VAE Decode for images of any size, within a memory budget. The result is the same as from VAE "
            "Decode, without tile borders or colour shifts.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latent, of any size."),
                io.Vae.Input(
                    "vae",
                    tooltip=VAE_TOOLTIP,
                ),
                io.Int.Input("memory", default=0, min=0, max=1_000_000, step=64, tooltip=MEMORY_TOOLTIP),
                _wrap_input(),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The same as from VAE Decode.")],
        )

    @classmethod
    def execute(cls, samples, vae, memory: int, wrap: Wrap = "none") -> io.NodeOutput:
        image = host_vae.decode(vae, samples["samples"], memory * 2**20, host.Bar().stage, wrap)
        return io.NodeOutput(image.to(host.intermediate_dtype()))
