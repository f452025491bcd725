"""Old node ids and their replacements, so that saved graphs keep working after a rename.

Node ids are never reused: a node that is renamed or merged gets an entry in RENAMED, which stays forever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from comfy_api import latest
from comfy_api.latest import io

from . import host

ADDED_BY_THE_PAGE = ""


@dataclass(frozen=True)
class Renamed:
    """A node that has a new id.

    `widgets`: the old node's inputs that have widgets, in their order, and ADDED_BY_THE_PAGE for each widget that
    pages add (such as control after generate): saved workflows hold values without names. `inputs`: (new name, old
    name) of those whose name has changed; the others keep theirs. Outputs keep their order.
    """

    old: str
    new: str
    widgets: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...] = ()


RENAMED: tuple[Renamed, ...] = ()


async def register(nodes: Iterable[type[io.ComfyNode]], renamed: tuple[Renamed, ...] = RENAMED) -> None:
    """Tell the host of the renamed nodes, which `nodes` replace.

    Pages of hosts newer than 0.8.0 are told how to replace nodes of a saved workflow. The server's queue renames by
    `replace` on every host, because the host's own replacement needs every input, those of optional sockets too.
    """
    if not renamed:
        return
    host.on_prompt(lambda prompt: replace(prompt, renamed))
    if not hasattr(io, "NodeReplace"):
        return
    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}
    for entry in renamed:
        names = [entry_input.id for entry_input in schemas[entry.new].inputs]
        await latest.ComfyAPI().node_replacement.register(
            io.NodeReplace(
                new_node_id=entry.new,
                old_node_id=entry.old,
                old_widget_ids=list(entry.widgets),
                input_mapping=[{"new_id": name, "old_id": dict(entry.inputs).get(name, name)} for name in names],
            )
        )


def replace(prompt: dict[str, Any], renamed: tuple[Renamed, ...] = RENAMED) -> None:
    """Replace the nodes with old ids in a queued prompt, in place; inputs that are not connected stay so."""
    entries = {entry.old: entry for entry in renamed}
    for node in prompt.values():
        if entry := entries.get(node.get("class_type")):
            new_names = {old: new for new, old in entry.inputs}
            node["class_type"] = entry.new
            node["inputs"] = {new_names.get(name, name): value for name, value in node["inputs"].items()}
