"""Nodes for the results of any upscaler, in ComfyUI's own menu groups: match colours, compare images."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..sr_models.canvas import color as colors
from ..sr_models.canvas.color import ColorMatch
from ..sr_models.errors import UserError
from . import host
from .schema import schema


class MatchColor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRMatchColor",
            display_name="Match Colour (One-Step SR)",
            category=host.menu_of("ImageBlur", "image/postprocessing"),
            description="Match the colours of an upscaled image to those of its original.",
            search_aliases=["color match", "color fix", "colour transfer", "wavelet", "adain"],
            inputs=[
                io.Image.Input("image", tooltip="The upscaled image, from any upscaler."),
                io.Image.Input("reference", tooltip="The original image, of any size."),
                io.Combo.Input(
                    "method",
                    options=[method for method in colors.COLOR_MATCHES if method != "none"],
                    default="wavelet",
                    tooltip="wavelet: local colours from the reference, fine detail from the image. adain: matches "
                    "the mean and contrast of each channel over the whole image.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The image with the reference's colours.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, reference: torch.Tensor, method: ColorMatch) -> io.NodeOutput:
        if len(reference) not in (1, len(image)):
            raise UserError(
                f"There are {len(reference)} references for {len(image)} images: connect one, or one per image."
            )
        result = image.clone()
        for index, picture in enumerate(image):
            pixels = host.from_host(picture[None, ..., :3])
            small = host.from_host(reference[index % len(reference)][None, ..., :3]).to(pixels.device)
            result[index, ..., :3] = host.to_host(colors.match(pixels, small, method).clamp(0, 1))[0]
        return io.NodeOutput(result)


class CompareImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRCompareImages",
            display_name="Compare Images (One-Step SR)",
            category=host.menu_of("ImageCompare", "image"),
            description="Show two images in one frame with a slider between them. Drag the slider, or focus it and "
            "use the arrow keys.",
            search_aliases=["image compare", "before after", "a/b", "slider"],
            inputs=[
                io.Image.Input("before", tooltip="Shown left of the slider; any size."),
                io.Image.Input("after", tooltip="Shown right of the slider; any size."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before: torch.Tensor, after: torch.Tensor) -> io.NodeOutput:
        shown = {"before": ui.PreviewImage(before, cls=cls).values, "after": ui.PreviewImage(after, cls=cls).values}
        return io.NodeOutput(ui=shown)
