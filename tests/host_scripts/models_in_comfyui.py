"""Runs inside ComfyUI's own interpreter, from its folder: model files through Load One-Step SR Model and Upscale Image,
to floats.

python models_in_comfyui.py FOLDER_OF_ONESTEP_SR CASES.pt RESULTS.pt

A case by name: `file`, `image` (1, 3, H, W) and `scale`. The networks are as small as those of the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

package, cases, result = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [".", package, str(Path(__file__).parents[1])]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 (before server.py puts comfy/utils.py in its way, as main.py does)
from onestep_sr.nodes import host, upscaling  # noqa: E402
from onestep_sr.sr_models.core.options import UpscaleOptions  # noqa: E402
from onestep_sr.sr_models.core.upscale import upscale  # noqa: E402
from onestep_sr.sr_models.families.loading import load  # noqa: E402
from small_models import use_small_networks  # noqa: E402


def through_nodes(case):
    shown = []
    upscaling.LoadModel.hidden = upscaling.UpscaleImage.hidden = SimpleNamespace(unique_id="1")
    host.show_on_node = lambda node_id, text: shown.append(text)
    host.compute_dtype = lambda: torch.float32
    host.Bar = lambda: SimpleNamespace(tile=None, stage=None)
    model = upscaling.LoadModel.execute(case["file"], "auto", "auto").args[0]
    inputs = {"upscale_by": case["scale"], "tile": 0, "overlap": 64, "color": "auto", "seed": 7}
    image = upscaling.UpscaleImage.execute(model, case["image"].movedim(1, -1), **inputs).args[0]
    plain = upscale(load(case["file"]).model, case["image"], UpscaleOptions(case["scale"], overlap=64, seed=7))
    return {"picture": image.movedim(-1, 1), "plain": plain, "shown": shown}


torch.set_grad_enabled(False)  # as the host runs its nodes
use_small_networks(setattr)
torch.save({name: through_nodes(case) for name, case in torch.load(cases).items()}, result)
