"""Another custom node pack on a test's host: a node that was renamed, registered as this pack registers its own, and a
tagger, whose texts are a list, with a CLIP and a node that shows what of them arrives."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from comfy_api.latest import ComfyExtension, io

sys.path.append(str(Path(__file__).parents[1]))

from onestep_sr.nodes import replacements

RENAMED = replacements.Renamed(
    "MadeUpOld",
    "MadeUpNew",
    widgets=("seed", replacements.ADDED_BY_THE_PAGE, "strength", "mode"),
    inputs=(("amount", "strength"), ("image", "picture")),
)


class New(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MadeUpNew",
            category="made up",
            inputs=[
                io.Image.Input("image"),
                io.Int.Input("seed", default=0, control_after_generate=True),
                io.Float.Input("amount", default=1.0),
                io.Combo.Input("mode", options=["a", "b"], default="a"),
                io.Mask.Input("mask", optional=True),
            ],
            outputs=[io.Image.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, seed: int, amount: float, mode: str, mask=None) -> io.NodeOutput:
        return io.NodeOutput(image, ui={"text": [f"{seed} {amount} {mode} {mask is not None}"]})


class Tagger(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MadeUpTagger",
            category="made up",
            inputs=[io.String.Input("tags", multiline=True)],
            outputs=[io.String.Output(is_output_list=True)],
        )

    @classmethod
    def execute(cls, tags: str) -> io.NodeOutput:
        return io.NodeOutput(tags.splitlines())


class Letters:
    """A CLIP whose embedding of a text is its letters."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return [[torch.tensor([[[float(ord(letter))] for letter in text]]), {"pooled_output": torch.zeros(1, 1)}]]


class Clip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MadeUpClip", category="made up", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(Letters())


class Show(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MadeUpShow",
            category="made up",
            inputs=[io.Conditioning.Input("conditioning")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning) -> io.NodeOutput:
        [[rows, _]] = conditioning
        texts = ["".join(chr(int(code)) for code in row.flatten() if code) for row in rows]
        return io.NodeOutput(ui={"text": [" | ".join(texts)]})


class MadeUpPack(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [New, Tagger, Clip, Show]


async def comfy_entrypoint() -> MadeUpPack:
    await replacements.register([New], (RENAMED,))
    return MadeUpPack()
