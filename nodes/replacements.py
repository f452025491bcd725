"""Old node ids and what stands for them now, so that saved graphs go on working after a rename.

A node id is never reused: one that is renamed or merged gets a line in RENAMED, and its old id stays here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Renamed:
    """`inputs` are (new name, old name); inputs of the same name are not listed twice by the host, so all are here."""

    old: str
    new: str
    inputs: tuple[tuple[str, str], ...] = ()


RENAMED: tuple[Renamed, ...] = ()


async def register(renamed: tuple[Renamed, ...] = RENAMED) -> None:
    """Tell the host, where it knows replacements (newer than 0.8.0); elsewhere nothing happens."""
    from comfy_api.latest import io

    if not renamed or not hasattr(io, "NodeReplace"):
        return
    from comfy_api.latest import ComfyAPI

    for entry in renamed:
        mapping = [{"new_id": new, "old_id": old} for new, old in entry.inputs]
        await ComfyAPI().node_replacement.register(
            io.NodeReplace(new_node_id=entry.new, old_node_id=entry.old, input_mapping=mapping or None)
        )
