"""Runs inside ComfyUI's own interpreter, from its folder: what loading and using the pack does to the host.

python import_pack.py FOLDER_OF_ONESTEP_SR BASE_FOLDER -> JSON: files opened, connections made and other packages'
modules loaded by the import (Python's own aside), and the host's functions, classes and attributes that are not what
they were, after the import and after a run.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

package, base = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu", "--base-directory", base]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

# isort: off
import comfy.cli_args  # noqa: E402
import comfy.model_management  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 (before server.py puts comfy/utils.py in its way, as main.py does)

import nodes  # noqa: E402
import server  # noqa: E402
# isort: on

HOST = ("comfy", "comfy_api", "comfy_execution", "execution", "folder_paths", "latent_preview", "nodes", "server")
OTHERS = ("torch.nn.functional", "torch.nn.modules.conv", "torch.nn.modules.normalization", "PIL.Image")
CODE = (".py", ".pyc", ".so", ".json.gz")
watching = False
opened: list[str] = []
connected: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    if not watching:
        return
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith(CODE):
        opened.append(arguments[0])
    elif event in ("socket.connect", "urllib.Request", "subprocess.Popen"):
        connected.append(str(arguments[1:]))


def parts() -> dict[str, int]:
    """Every function and class of the host, and every attribute of those classes, by identity."""
    found = {}
    for name, module in list(sys.modules.items()):
        if module is None or (name.split(".")[0] not in HOST and name not in OTHERS):
            continue
        for attribute, value in list(vars(module).items()):
            if inspect.isroutine(value) or inspect.isclass(value):
                found[f"{name}.{attribute}"] = id(value)
            if inspect.isclass(value) and value.__module__ == name:
                found |= {f"{name}.{attribute}.{k}": id(v) for k, v in vars(value).items() if not k.startswith("_abc_")}
    return found


def changed(before: dict[str, int]) -> list[str]:
    after = parts()
    classes = {name.rsplit(".", 1)[0] for name in before}
    added = [name for name in after.keys() - before.keys() if name.rsplit(".", 1)[0] in classes]
    return sorted({name for name, value in before.items() if after.get(name) != value} | set(added))


loop = asyncio.new_event_loop()
server.PromptServer(loop)
sys.addaudithook(watch)
loop.run_until_complete(nodes.init_builtin_extra_nodes())
before, modules = parts(), set(sys.modules)
watching = True
loaded = loop.run_until_complete(nodes.load_custom_node(package))
watching = False
after_import = changed(before)
imported = {name.split(".")[0] for name in set(sys.modules) - modules if not name.startswith(package)}

upscale_image = nodes.NODE_CLASS_MAPPINGS["OneStepSRUpscaleImage"]
load_model = nodes.NODE_CLASS_MAPPINGS["OneStepSRLoadModel"]
node = type("Run", (upscale_image,), {"hidden": SimpleNamespace(unique_id="1")})
model = load_model.execute("bundled", "auto", "auto").args[0]
inputs = (model, torch.rand(1, 24, 32, 3), 4.0, 0, 64, "wavelet", 0)
result = node.execute(*inputs).args[0]
after_run = changed(before)
comfy.cli_args.args.fp16_intermediates = True  # newer hosts' --fp16-intermediates

print(
    json.dumps(
        {
            "loaded": loaded,
            "shape": list(result.shape),
            "opened": opened,
            "connected": connected,
            "imported": sorted(imported - sys.stdlib_module_names),
            "after_import": after_import,
            "after_run": after_run,
            "between_nodes": [str(result.dtype), str(node.execute(*inputs).args[0].dtype)],
            "hosts_half": str(getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()),
            "model_folder": (Path(base) / "models" / "onestep_sr").is_dir(),
        }
    )
)
