"""Old node ids and their replacements, so that saved graphs keep working after a rename.

Node ids are never reused: a node that is renamed or merged gets an entry in RENAMED, which stays forever.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Renamed:
    """`inputs` are (new name, old name) of all inputs, because the host does not carry over unlisted ones."""

    old: str
    new: str
    inputs: tuple[tuple[str, str], ...] = ()


RENAMED: tuple[Renamed, ...] = ()


async def register(renamed: tuple[Renamed, ...] = RENAMED) -> None:
    """Register replacements with hosts that support them (newer than 0.8.0); does nothing on others."""
    from comfy_api.latest import io

    if not renamed or not hasattr(io, "NodeReplace"):
        return
    from comfy_api.latest import ComfyAPI

    for entry in renamed:
        mapping = [{"new_id": new, "old_id": old} for new, old in entry.inputs]
        await ComfyAPI().node_replacement.register(
            io.NodeReplace(new_node_id=entry.new, old_node_id=entry.old, input_mapping=mapping or None)
        )
