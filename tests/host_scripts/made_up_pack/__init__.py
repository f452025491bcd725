"""Another custom node pack on a test's host: a node that was renamed, registered as this pack registers its own."""

from __future__ import annotations

import sys
from pathlib import Path

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


class MadeUpPack(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [New]


async def comfy_entrypoint() -> MadeUpPack:
    await replacements.register([New], (RENAMED,))
    return MadeUpPack()
