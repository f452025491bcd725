"""One-Step SR Tags: what RAM sees in an image, in the prompt of a one-step LoRA."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from comfy_api.latest import io

from ..sr_models.checkpoints.weights_file import Stamp, beside, file_stamps
from ..sr_models.errors import UserError
from ..sr_models.families.tagger import LICENCE_NOTICE, LORA_FILE, RAM_FILE, TAGS_FILE, THRESHOLDS_FILE, read_tagger
from . import host, host_tagging
from .schema import schema
from .stable_diffusion import CATEGORY
from .upscaling import COMBINER


class Tags(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = host.weights_files(host.MODEL_FOLDER)
        return schema(
            node_id="OneStepSRTags",
            search_aliases=["tagger", "ram", "recognize anything", "dape", "tad-seesr", "seesr", "osediff tags"],
            display_name="One-Step SR Tags",
            category=CATEGORY,
            description="Find tags in an image with RAM and encode them in the prompt of the LoRA: for TAD-SeeSR, "
            "which also looks at the image, OSEDiff and GDPO-SR. Each image of a batch gets its own prompt.",
            inputs=[
                io.Image.Input("image", tooltip="The image to upscale, before it is enlarged."),
                io.Model.Input("model", tooltip="From Apply One-Step SR LoRA."),
                io.Clip.Input("clip", tooltip="From the same checkpoint as the MODEL."),
                io.Combo.Input(
                    "tagger",
                    options=files,
                    default=RAM_FILE if RAM_FILE in files else None,
                    tooltip="ram_swin_large_14m.pth in models/onestep_sr, with DAPE.pth and ram_tag_list.txt next to "
                    "it.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    tooltip="Your own words, which follow the tags. Empty: the words that the LoRA was published with.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="CONDITIONING", tooltip=f"For {COMBINER}."),
                io.String.Output(display_name="tags", tooltip="The tags, one line for each image."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, tagger: str | None = None, **others) -> tuple[Stamp, ...]:
        """Makes the host read files again that were replaced on disk."""
        return file_stamps(_files(tagger)) if tagger else ()

    @classmethod
    def execute(cls, image, model, clip, tagger: str, text: str) -> io.NodeOutput:
        if clip is None:  # of a checkpoint without a text encoder
            raise UserError(
                "One-Step SR Tags needs CLIP to encode the tags, but the connected checkpoint has no text encoder: "
                "connect a complete checkpoint of Stable Diffusion 2.1, or its CLIP."
            )
        path = _files(tagger)[0]
        opened = _opened(path, file_stamps(_files(tagger)))
        host.print_once(LICENCE_NOTICE)
        return io.NodeOutput(*host_tagging.tagged(opened, host.from_host(image[..., :3]), model, clip, text))


def _files(name: str) -> list[Path]:
    path = host.weights_path(name, host.MODEL_FOLDER)
    return [path, *(beside(path, other) for other in (LORA_FILE, TAGS_FILE, THRESHOLDS_FILE))]


@lru_cache(maxsize=1)
def _opened(path: Path, stamps: tuple[Stamp, ...]) -> host_tagging.HostedTagger:
    """The tagger, which is kept for the next image."""
    return host_tagging.adopt(read_tagger(path, host.compute_dtype()))
