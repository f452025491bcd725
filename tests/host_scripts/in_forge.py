"""Runs in the interpreter of Automatic1111, Forge, Forge Neo or reForge, from its folder: its start as it is, then what
users do, without a browser.

python in_forge.py OPTIONS --data-dir DATA: results go to DATA/results, as pictures and `results.json`. The host reads
the options itself. It has no checkpoint that it could load, so that nothing is generated.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import shutil
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, ".")

from modules import launch_utils

if getattr(launch_utils.args, "forge_ref_comfy_home", None):
    launch_utils.configure_comfy_reference(launch_utils.args.forge_ref_comfy_home)

import webui  # noqa: I001 (starts everything but the page, except in Automatic1111)
import numpy as np
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from modules import call_queue, devices, images, initialize, postprocessing, script_callbacks, scripts, sd_models
from modules import shared, ui
from modules.paths import data_path
from PIL import Image

if not shared.sd_upscalers:
    initialize.initialize()

DATA = Path(data_path)
RESULTS = DATA / "results"
# Fields of Extras before those of the sections: Forge Neo also has one for a video.
FIELDS = [
    name
    for name, field in inspect.signature(postprocessing.run_postprocessing).parameters.items()
    if field.kind is field.POSITIONAL_OR_KEYWORD
]


def picture(name):
    return Image.open(DATA / f"{name}.png")


def save(name, result):
    result.save(RESULTS / f"{name}.png")


def upscaler(name):
    return next(entry for entry in shared.sd_upscalers if entry.name == name)


def arguments(**settings):
    """What the page would send: every section as it starts, ours switched on and changed."""
    sections = scripts.scripts_postproc.scripts_in_preferred_order()
    values = {section.name: {name: part.value for name, part in section.controls.items()} for section in sections}
    values["One-Step SR"] |= {"enable": True, **settings}
    return scripts.scripts_postproc.create_args_for_run(values)


def fields(*values):
    return [*values, *[""] * (len(FIELDS) - len(values))]


def extras(image, **settings):
    """The section on one picture, as the page's button runs it: pictures and the text under them."""
    run = call_queue.wrap_gradio_gpu_call(postprocessing.run_postprocessing_webui, extra_outputs=[None, ""])
    outputs, text, log = run("task(test)", *fields(0, image, None, "", "", True), *arguments(**settings))
    return outputs or [], text + log


def extras_folder(source, target, **settings):
    run = postprocessing.run_postprocessing
    run(*fields(2, None, None, str(source), str(target), False), *arguments(**settings))
    return sorted(path.name for path in target.glob("*"))


def extras_video(frames, **settings):
    """The section on a video, without the host's encoder: the shapes of what it would encode."""
    import av

    with av.open(DATA / "clip.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=5, width=frames[0].width, height=frames[0].height)
        stream.pix_fmt = "yuvj420p"
        for frame in (*map(av.VideoFrame.from_image, frames), None):
            container.mux(stream.encode(frame))
    encoded = []
    images.save_video = lambda name, frames, **options: encoded.extend(np.shape(frame) for frame in frames)
    values = [3, None, None, "", "", True, str(DATA / "clip.avi"), *arguments(**settings)]
    postprocessing.run_postprocessing_webui("task(test)", *values)
    return encoded


def click(name):
    """Press a button of the page, as far as it needs no values from it."""
    [button] = [block for block in demo.blocks.values() if block.elem_id == name]
    for function in demo.fns.values() if isinstance(demo.fns, dict) else demo.fns:
        index = None if isinstance(demo.fns, dict) else demo.fns.index(function)
        targets = function.targets if index is None else demo.dependencies[index]["targets"]
        if button._id in [target[0] if isinstance(target, tuple | list) else target for target in targets]:
            function.fn()


def choices(name):
    [block] = [block for block in demo.blocks.values() if block.elem_id == name]
    return [entry[0] if isinstance(entry, tuple | list) else entry for entry in block.choices]


def encoded(name):
    return base64.b64encode((DATA / "input" / f"{name}.png").read_bytes()).decode()


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def interrupted_run():
    """A folder of large pictures, interrupted through the interface once two tiles are done."""
    seen = {}

    def watch():
        while shared.state.sampling_step < 2:
            time.sleep(0.002)
        seen["progress"] = client.get("/sdapi/v1/progress").json()
        seen["job"] = shared.state.job_no, shared.state.job_count
        seen["tiles at the interrupt"] = shared.state.sampling_step
        client.post("/sdapi/v1/interrupt")

    shared.state.sampling_step = 0
    watcher = threading.Thread(target=watch)
    watcher.start()
    saved = extras_folder(DATA / "large", RESULTS / "interrupted", tile=128)
    watcher.join()
    return seen | {"saved": saved, "tiles": shared.state.sampling_step, "of": shared.state.sampling_steps}


RESULTS.mkdir()
script_callbacks.before_ui_callback()
results = {"upscalers": [entry.name for entry in shared.sd_upscalers]}

# As hires fix and img2img call an upscaler: in the middle of a generation, in inference mode
with torch.inference_mode():
    save("hires fix", images.resize_image(0, picture("input/houses"), 250, 210, upscaler_name="One-Step SR x4"))
save(
    "upscaler",
    upscaler("One-Step SR x4").scaler.upscale(picture("input/houses"), 2.03, upscaler("One-Step SR x4").data_path),
)
own = upscaler("One-Step SR: faces/mine")
save("own file", own.scaler.upscale(picture("small"), 9, own.data_path))
save("shrunk", own.scaler.upscale(picture("small"), 0.5, own.data_path))

# The page, and the section in it
demo = ui.create_ui()
results["elements"] = [block.elem_id for block in demo.blocks.values() if "onestep_sr" in str(block.elem_id)]
lists = ("extras_upscaler_1", "txt2img_hr_upscaler", "script_sd_upscale_upscaler_index", "setting_upscaler_for_img2img")
results["lists"] = {name: choices(name) for name in (*lists, "extras_onestep_sr_model", "extras_onestep_sr_checkpoint")}
results["info"] = next(block.info for block in demo.blocks.values() if block.elem_id == "extras_onestep_sr_checkpoint")
outputs, results["text"] = extras(picture("input/transparent"), scale=2.5, seed=7)
save("extras", outputs[0])
results["folder"] = extras_folder(DATA / "input", RESULTS / "folder", scale=2)

app = FastAPI()
webui.create_api(app)
client = TestClient(app)
results["interrupted"] = interrupted_run()

# The interface
results["listed"] = [entry["name"] for entry in client.get("/sdapi/v1/upscalers").json()]
request = {"image": encoded("transparent"), "upscaler_1": "One-Step SR x4", "upscaling_resize": 4}
answer = client.post("/sdapi/v1/extra-single-image", json=request).json()
results["interface text"] = answer["html_info"]
save("interface", decoded(answer["image"]))
request = {"imageList": [{"data": encoded(name), "name": name} for name in ("houses", "sky")]}
request |= {"upscaler_1": "One-Step SR x4", "upscaling_resize": 2}
answer = client.post("/sdapi/v1/extra-batch-images", json=request).json()
results["batch"] = [decoded(image).size for image in answer["images"]]

# Refresh buttons
shutil.copy(DATA / "checkpoints" / "other.safetensors", DATA / "checkpoints" / "new.safetensors")
shutil.copy(DATA / "models" / "OneStepSR" / "TAD-SR.pth", DATA / "models" / "OneStepSR" / "new.pth")
for name in ("extras_onestep_sr_checkpoint_refresh", "extras_onestep_sr_model_refresh"):
    click(name)
if "refresh_upscaler" in [block.elem_id for block in demo.blocks.values()]:
    click("refresh_upscaler")
    click("refresh_upscaler")
results["refreshed"] = {name: choices(name) for name in results["lists"]}
results["refreshed"]["all"] = [entry.name for entry in shared.sd_upscalers]

if "video" in FIELDS or "_" in FIELDS:
    results["video"] = extras_video([picture("small").convert("RGB")] * 3, scale=2, overlap=0)

# Published files
published = DATA / "models" / "OneStepSR" / "TAD-SR.pth"
try:
    results["host reads"] = torch.load(published, map_location="meta") is not None
except RuntimeError as error:  # as a host that does not check them
    results["host reads"] = str(error)
published = upscaler("One-Step SR: TAD-SR")
save("TAD-SR", published.scaler.upscale(picture("small"), 4, published.data_path))
outputs, results["TSD-SR text"] = extras(
    picture("input/sky"), model="TSD-SR: tsdsr", checkpoint="sd3.safetensors", scale=2, overlap=0
)
save("TSD-SR", outputs[0])

# Failures, as the page shows them
results["failures"] = {
    name: extras(picture("input/sky"), **settings)[1]
    for name, settings in (
        ("scale", {"scale": 11}),
        ("overlap", {"tile": 128, "overlap": 100}),
        ("gone", {"model": "One-Step SR: gone"}),
        ("empty", {"model": "One-Step SR: empty"}),
        ("no checkpoint", {"model": "TSD-SR: tsdsr"}),
        ("wrong checkpoint", {"model": "TSD-SR: tsdsr", "checkpoint": "other.safetensors"}),
    )
}
results["failures"]["small"] = extras(picture("input/sky").resize((5, 9)))[1]

# Settings
results["categories"] = {
    name: getattr(shared.opts.data_labels[name], "category_id", None) for name in ("onestep_sr_tile", "ESRGAN_tile")
}
results["settings"] = {name: getattr(shared.opts, name) for name in shared.opts.data_labels if "onestep_sr" in name}
shared.opts.onestep_sr_tile, shared.opts.onestep_sr_dtype = 128, "fp32"
shared.opts.onestep_sr_budget, shared.opts.onestep_sr_color = 64, "wavelet"
save(
    "settings",
    upscaler("One-Step SR x4").scaler.upscale(picture("input/houses"), 4, upscaler("One-Step SR x4").data_path),
)
# On a GPU
calls = []
host = sys.modules["onestep_sr_extension.scripts.onestep_sr_webui.host"]
results["memory management"] = host.memory_management and host.memory_management.__name__
shared.opts.onestep_sr_dtype = "auto"
results["precision"] = []
for place in (torch.device("meta"), torch.device("cpu")):
    host.device = lambda place=place: place
    results["precision"].append([str(devices.dtype), str(host.compute_dtype())])

# As Automatic1111, which has no memory management of its own
host.memory_management, host.device = None, lambda: torch.device("meta")
sd_models.model_data.sd_model = "model"
sd_models.send_model_to_cpu = lambda model: calls.append(f"{model} to the CPU")
sd_models.send_model_to_device = lambda model: calls.append(f"{model} back")
for size in (2**20, 2**34):
    with host.room_for(size):
        calls.append(size)
results["calls"] = calls

results["our packages"] = sorted(name for name in sys.modules if "onestep_sr" in name and "." not in name)
(RESULTS / "results.json").write_text(json.dumps(results))
