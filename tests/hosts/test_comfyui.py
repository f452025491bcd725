"""The nodes inside real ComfyUI servers, through their HTTP interface; and the workflow files that ship."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_host import (
    HOW_TO_GET_ONE,
    ONE_THREAD,
    Host,
    Prompt,
    choices,
    events,
    installed_hosts,
    interpreter,
    start,
    stop,
    to_prompt,
)
from limits import HANGING_SECONDS
from node_texts import LANGUAGES, node_texts, texts_of
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.devices import default_dtype
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.region import upscale_regions
from onestep_sr.sr_models.families.loading import load
from PIL import Image
from places import HOST_SCRIPTS, NAMED_IN_WORKFLOWS, PHOTOS, ROOT, template
from safetensors.torch import save_file

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
QUICK_START = template("quick-start")
BUNDLED = ROOT / "sr_models" / "weights" / "onestep-sr-x4.safetensors"
WITHOUT_DOWNLOADS = ("quick-start", "region-only", "video-frames")
HOSTS = installed_hosts()
LOOK_AT_HOST = HOST_SCRIPTS / "import_pack.py"
MADE_UP_PACK = HOST_SCRIPTS / "made_up_pack"
WRITE_CLIP = HOST_SCRIPTS / "write_clip.py"
LOAD, UPSCALE = "OneStepSRLoadModel", "OneStepSRUpscaleImage"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small photos; `example.png`, which Load Image starts with, has sides that are multiples of nothing."""
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copy(PHOTOS / "grass.png", folder / "example.png")
    for name in ("houses", "sky"):
        Image.open(PHOTOS / f"{name}.png").convert("RGB").crop((0, 0, 96, 80)).save(folder / f"{name}.png")
    transparent = Image.open(folder / "houses.png")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(folder / "transparent.png")
    return folder


@pytest.fixture(scope="module")
def expected(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line makes of the pictures."""
    folder = tmp_path_factory.mktemp("expected")
    command = [sys.executable, "-m", "onestep_sr", "upscale", str(pictures), "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=HANGING_SECONDS, env=os.environ | ONE_THREAD)
    return folder


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def host(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(pictures, base / "input")
    half = Image.open(base / "input" / "houses.png")
    half.putalpha(Image.fromarray(np.repeat(np.repeat([[0, 255]], 48, 1), 80, 0).astype(np.uint8)))
    half.save(base / "input" / "half.png")
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    Image.fromarray(noise).save(base / "input" / "large.png")
    for folder in (base / "models" / "onestep_sr", base / "elsewhere" / "models"):
        folder.mkdir(parents=True)
    (base / "models" / "onestep_sr" / "empty.safetensors").touch()
    for file in NAMED_IN_WORKFLOWS:
        (base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
        (base / "models" / file).touch()
    subprocess.run([str(interpreter(request.param)), str(WRITE_CLIP), str(base / "input" / "example.mp4")], check=True)
    (base / "models" / "onestep_sr" / "readme.txt").write_text("No weights.")
    save_file({"weight": torch.zeros(2)}, base / "models" / "onestep_sr" / "other.safetensors")
    shutil.copytree(MADE_UP_PACK, base / "custom_nodes" / MADE_UP_PACK.name)
    (base / "elsewhere" / "models" / "mine.safetensors").symlink_to(BUNDLED)
    running = start(request.param, base)
    yield running
    stop(running)


def quick_start(host: Host, image: str = "example.png", **settings: object) -> Prompt:
    """The shipped workflow as a prompt, on another picture or with other settings."""
    prompt = to_prompt(json.loads(QUICK_START.read_text()), host.object_info)
    node(prompt, "LoadImage")["inputs"]["image"] = image
    for name, value in settings.items():
        node(prompt, LOAD if name in ("model", "autoencoder", "recipe") else UPSCALE)["inputs"][name] = value
    return prompt


def node(prompt: Prompt, kind: str) -> dict:
    return next(entry for entry in prompt.values() if entry["class_type"] == kind)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def assert_same_picture(path: Path, reference: Path) -> None:
    """Save Image cuts where the command line rounds: one level of 255 is no difference."""
    result, wanted = pixels(path), pixels(reference)
    assert result.shape == wanted.shape
    assert np.abs(result - wanted).max() <= 1


def assert_one_sentence(message: str) -> None:
    text = message.rstrip("\n")
    assert text.endswith(".") and "\n" not in text and "Error" not in text, message


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_file_is_sound(path: Path) -> None:
    workflow = json.loads(path.read_text())
    nodes = {entry["id"]: entry for entry in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for link, source, output, target, socket, kind in workflow["links"]:
        start_of, end_of = nodes[source]["outputs"][output], nodes[target]["inputs"][socket]
        assert link in start_of["links"] and end_of["link"] == link
        assert start_of["type"] == end_of["type"] == kind
    boxes = [(*entry["pos"], *entry["size"]) for entry in nodes.values()]
    for i, (x, y, width, height) in enumerate(boxes):
        for u, v, other_width, other_height in boxes[:i]:
            title = 30
            apart = x >= u + other_width or u >= x + width or y - title >= v + other_height or v - title >= y + height
            assert apart, "nodes lie on each other"
    (note,) = (entry for entry in nodes.values() if entry["type"] == "MarkdownNote")
    assert note["title"] and "`" not in note["widgets_values"][0]  # Nodes 2.0 draws inline code as dark boxes
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.width <= 640 and path.with_suffix(".jpg").stat().st_size < 60_000


def test_quick_start_is_the_first_template() -> None:
    assert WORKFLOWS[0] == QUICK_START


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_whose_links_fit(path: Path) -> None:
    blueprint = json.loads(path.read_text())
    (node,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == path.stem and inside["description"]
    assert [entry["name"] for entry in node["inputs"]] == [entry["name"] for entry in inside["inputs"]]
    nodes = {entry["id"]: entry for entry in inside["nodes"]}
    for link in inside["links"]:
        source, target = nodes.get(link["origin_id"]), nodes.get(link["target_id"])
        ends = (source or {"outputs": inside["inputs"]})["outputs"], (target or {"inputs": inside["outputs"]})["inputs"]
        assert ends[0][link["origin_slot"]]["type"] == ends[1][link["target_slot"]]["type"] == link["type"]


@pytest.mark.host
def test_the_pack_loads_silently(host: Host) -> None:
    assert "IMPORT FAILED" not in host.log
    log = re.sub(r"(\x1b\[\d+m)?\[INFO\](\x1b\[\d+m)? *", "", host.log)  # newer hosts write levels
    mentions = [line.strip() for line in log.splitlines() if re.search("one-?step", line, re.IGNORECASE)]
    assert mentions[0].startswith("Adding extra search path") and len(mentions) == 2, mentions
    assert re.fullmatch(r"[\d.]+ seconds: .*/custom_nodes/onestep_sr", mentions[1])


@pytest.mark.host
@pytest.mark.parametrize("folder", HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def test_the_host_is_not_modified(folder: Path | None, tmp_path: Path) -> None:
    if folder is None:
        pytest.skip(HOW_TO_GET_ONE)
    command = [str(interpreter(folder)), str(LOOK_AT_HOST), str(ROOT), str(tmp_path)]
    shown = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    seen = json.loads(shown.stdout.splitlines()[-1])
    assert seen["loaded"] and seen["shape"] == [1, 96, 128, 3]
    assert seen["opened"] == [str(ROOT / "pyproject.toml")]  # by the host, which looks for a web folder in it
    assert seen["imported"] == []  # what takes time to import, the host has already
    assert seen["connected"] == seen["after_import"] == seen["after_run"] == []
    assert seen["model_folder"]  # created where there was none
    assert seen["between_nodes"] == ["torch.float32", seen["hosts_half"]]


@pytest.mark.host
def test_the_nodes_offer_what_saved_workflows_rely_on(host: Host) -> None:
    load, upscale = host.object_info[LOAD], host.object_info[UPSCALE]
    assert load["display_name"] == "Load 4x Super Resolution Model (One-Step SR)"
    assert load["input_order"]["required"] == ["model", "autoencoder", "recipe"]
    assert load["output"] == ["SR_MODEL", "UPSCALE_MODEL"]
    assert upscale["display_name"] == "Upscale Image (One-Step SR)"
    order = upscale["input_order"]
    assert order["required"] == ["sr_model", "image", "upscale_by", "tile", "overlap", "color", "seed"]
    new = ["size", "pixels", "megapixels", "strength", "wrap", "region"]  # at the end, with defaults as before
    assert order["optional"] == ["detail", "mask", *new]
    optional = upscale["input"]["optional"]
    assert [optional[name][1]["default"] for name in ("size", "strength", "wrap")] == ["factor", 1.0, "none"]
    assert upscale["input"]["optional"]["detail"][1]["default"] == 1.0
    required = upscale["input"]["required"]
    defaults = {name: required[name][1]["default"] for name in ("upscale_by", "tile", "overlap", "color", "seed")}
    assert defaults == {"upscale_by": 4.0, "tile": 0, "overlap": -1, "color": "auto", "seed": 0}
    assert required["seed"][1]["control_after_generate"] is False
    assert upscale["output"] == ["IMAGE", "IMAGE", "MASK"] and upscale["output_name"] == ["IMAGE", "RGB", "MASK"]
    for info in (load, upscale):
        widgets = [spec[1] for name, spec in info["input"]["required"].items() if name not in ("sr_model", "image")]
        assert all(options["tooltip"] for options in widgets)
        assert info["description"] and info["category"] == "image/upscaling/One-Step SR"


@pytest.mark.host
def test_other_nodes_are_in_the_menu_groups_of_their_stock_counterparts(host: Host) -> None:
    beside = {
        "OneStepSRVAEEncode": "VAEEncode",
        "OneStepSRVAEDecode": "VAEDecode",
        "OneStepSRMatchColor": "ImageBlur",
        "OneStepSRCompareImages": "PreviewImage",
    }
    for ours, stock in beside.items():
        assert host.object_info[ours]["category"] == host.object_info[stock]["category"]


@pytest.mark.host
def test_every_node_has_a_help_page_and_tooltips(host: Host) -> None:
    ours = {kind: info for kind, info in host.object_info.items() if kind.startswith("OneStepSR")}
    assert len(ours) == len(list((ROOT / "web" / "docs").glob("*.md"))) == 11
    for kind, info in ours.items():
        page = host.get(f"/extensions/onestep_sr/docs/{kind}.md").decode()
        assert page.startswith(f"# {info['display_name']}\n") and info["description"]
        groups = (info["input"].get(group, {}) for group in ("required", "optional"))
        for name, spec in ((name, spec) for group in groups for name, spec in group.items()):
            assert f"| `{name}` |" in page, f"{kind}: {name} is not explained"
            assert spec[1]["tooltip"], f"{kind}: {name} has no tooltip"


@pytest.mark.host
def test_the_english_texts_are_those_of_the_nodes(host: Host) -> None:
    """If this fails, run tests/node_texts.py and bring the translations after."""
    assert node_texts(host.object_info) == texts_of("en")


@pytest.mark.host
def test_the_host_serves_all_languages(host: Host) -> None:
    served = host.get_json("/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"]["OneStepSRModel"] == texts_of(language)["OneStepSRModel"]


@pytest.mark.host
def test_workflows_are_templates_with_pictures(host: Host) -> None:
    listed = host.get_json("/workflow_templates")["onestep_sr"]
    assert sorted(listed) == sorted(path.stem for path in WORKFLOWS)
    for path in WORKFLOWS:
        address = f"/api/workflow_templates/onestep_sr/{path.stem}"
        assert host.get_json(f"{address}.json") == json.loads(path.read_text())
        assert Image.open(io.BytesIO(host.get(f"{address}.jpg"))).format == "JPEG"


@pytest.mark.host
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_file_fits_the_nodes(host: Host, path: Path) -> None:
    prompt = to_prompt(json.loads(path.read_text()), host.object_info)
    for entry in prompt.values():
        groups = host.object_info[entry["class_type"]]["input"]
        assert groups.get("required", {}).keys() <= entry["inputs"].keys()
        for name, spec in {**groups.get("required", {}), **groups.get("optional", {})}.items():
            if isinstance(spec[0], list) or spec[0] == "COMBO":
                assert name not in entry["inputs"] or entry["inputs"][name] in choices(spec)


@pytest.mark.host
@pytest.mark.parametrize("name", WITHOUT_DOWNLOADS)
def test_a_workflow_without_downloads_runs(host: Host, name: str) -> None:
    workflow = json.loads(template(name).read_text())
    entry = host.wait(host.queue(to_prompt(workflow, host.object_info)))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    files = [file for output in entry["outputs"].values() for file in output.get("images", ())]
    assert files and all((host.base / file["type"] / file["subfolder"] / file["filename"]).is_file() for file in files)


@pytest.mark.host
def test_a_region_only_takes_the_models_detail_where_it_is_masked(host: Host) -> None:
    workflow = json.loads(template("region-only").read_text())
    prompt = to_prompt(workflow, host.object_info)
    node(prompt, "LoadImage")["inputs"]["image"] = "half.png"
    result = pixels(next(path for path in host.results(prompt) if path.parent.name == "output"))
    photo = torch.from_numpy(pixels(host.base / "input" / "half.png") / 255).permute(2, 0, 1)[None].float()
    image, mask = photo[:, :3], 1 - photo[:, 3:]
    model = load(dtype=default_dtype(torch.device("cpu"))).model
    expected = upscale_regions(model, image, mask, UpscaleOptions(4, overlap=64, detail=1.0))
    plain = resize(image, (4 * image.shape[2], 4 * image.shape[3])).clamp(0, 1)
    levels, interpolated = (255 * picture[0].permute(1, 2, 0).numpy() for picture in (expected, plain))
    middle, margin = result.shape[1] // 2, 16
    assert np.abs(result - levels).max() <= 1
    assert np.abs(result - interpolated)[:, middle + margin :].max() <= 1
    assert np.abs(result - interpolated)[:, : middle - margin].mean() > 2


@pytest.mark.host
def test_the_template_gives_the_command_lines_picture(host: Host, expected: Path) -> None:
    (result,) = host.results(quick_start(host))
    assert_same_picture(result, expected / "example.png")


@pytest.mark.host
@pytest.mark.parametrize("model", ["bundled", "mine.safetensors"])
def test_a_recipe_that_a_workflow_holds_beside_a_model_that_needs_none(host: Host, model: str) -> None:
    wanted, result = (host.results(quick_start(host, recipe=recipe, model=model)) for recipe in ("auto", "sinsr"))
    assert_same_picture(result[0], wanted[0])


@pytest.mark.host
def test_the_plan_is_shown_before_a_run_and_the_time_after_one(host: Host) -> None:
    def plan(**changes: object) -> dict:
        model = {"model": "bundled", "autoencoder": "auto", "recipe": "auto"}
        question = {
            "node": LOAD,
            "model": model,
            "width": 256,
            "height": 192,
            "upscale_by": 4,
            "tile": 512,
            "overlap": 64,
        }
        return host.post("/onestep_sr/plan", question | changes)

    (host.base / "user" / "onestep_sr" / "pace.json").unlink(missing_ok=True)
    assert plan() == {
        "text": "1024 x 768 px: 6 tiles (3 x 2) of 512 x 512 px, time known after a run, 105 MB of main memory",
        "level": "fits",
        "width": 1024,
        "height": 768,
        "noise": False,
    }
    assert host.results(quick_start(host, "sky.png", seed=77))
    assert re.search(r", about \d+ (s|min), 105 MB of main memory$", plan()["text"])
    assert plan(overlap=300)["text"] == "Overlap 300 does not fit a tile of 512: choose 0 to 256."
    assert plan(model={"model": "../secret.safetensors", "recipe": "auto"})["width"] is None
    large = plan(node="OneStepSRModel", model={"recipe": "tsd-sr"}, tile=0, upscale_by=8)
    assert large["text"].startswith("2048 x 1536 px: 20 tiles (5 x 4) of 512 x 512 px, ")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        host.post("/onestep_sr/plan", {"width": 3})
    assert plan(width=2**20, height=2**20, tile=1, overlap=0)["width"] == 2**22
    for body in (b'{"width": 3}', b"[" * 60_000, b"NaN", b"\xff", b"", b'"' + b"x" * 10**6 + b'"', b"[1e999]"):
        request = urllib.request.Request(f"http://127.0.0.1:{host.port}/onestep_sr/plan", body)
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            urllib.request.urlopen(request, timeout=HANGING_SECONDS)
        assert_one_sentence(json.loads(refused.value.read())["error"])


@pytest.mark.host
@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_matched_colours_equal_the_cores_result(host: Host, method: str) -> None:
    prompt = quick_start(host, "transparent.png", color="none")
    source = node(prompt, "LoadImage")
    reference = next(key for key, entry in prompt.items() if entry is source)
    upscaled = next(key for key, entry in prompt.items() if entry["class_type"] == UPSCALE)
    prompt["match"] = {
        "class_type": "OneStepSRMatchColor",
        "inputs": {"image": [upscaled, 0], "reference": [reference, 0], "method": method},
    }
    node(prompt, "SaveImage")["inputs"]["images"] = ["match", 0]
    (matched,) = host.results(prompt)
    (wanted,) = host.results(quick_start(host, "transparent.png", color=method))
    assert_same_picture(matched, wanted)


@pytest.mark.host
def test_a_comparison_keeps_both_pictures(host: Host) -> None:
    prompt = quick_start(host, "sky.png")
    before, after = node(prompt, UPSCALE)["inputs"]["image"], node(prompt, "SaveImage")["inputs"]["images"]
    prompt["compare"] = {"class_type": "OneStepSRCompareImages", "inputs": {"before": before, "after": after}}
    shown = host.wait(host.queue(prompt))["outputs"]["compare"]
    sizes = [Image.open(host.base / "temp" / shown[side][0]["filename"]).size for side in ("before", "after")]
    assert sizes == [(96, 80), (384, 320)]


@pytest.mark.host
def test_transparency_is_kept(host: Host, expected: Path) -> None:
    (by_mask,) = host.results(quick_start(host, "transparent.png"))
    assert Image.open(by_mask).mode == "RGBA"
    assert_same_picture(by_mask, expected / "transparent.png")
    prompt = quick_start(host, "transparent.png")
    upscale = node(prompt, UPSCALE)["inputs"]
    sources = {"image": upscale["image"], "alpha": upscale.pop("mask")}
    prompt["rgba"] = {"class_type": "JoinImageWithAlpha", "inputs": sources}
    upscale["image"] = ["rgba", 0]
    (by_image,) = host.results(prompt)
    assert_same_picture(by_image, expected / "transparent.png")


@pytest.mark.host
def test_a_batch_gives_each_picture_its_own_result(host: Host, expected: Path) -> None:
    prompt = batch_of_two(host)
    results = host.results(prompt)
    assert len(results) == 2
    for result, name in zip(results, ("houses.png", "sky.png"), strict=True):
        assert_same_picture(result, expected / name)


@pytest.mark.host
@pytest.mark.parametrize(
    ("per_image", "shown"),
    [(True, ["a house | a lake | cat"]), (False, ["a house", "a lake", "cat"])],
    ids=["a text per image", "a list of prompts"],
)
def test_a_taggers_list_of_texts_reaches_the_prompt(host: Host, per_image: bool, shown: list[str]) -> None:
    """From another pack's node with a list output: one prompt with a row per image, or a list of prompts."""
    entry = host.wait(host.queue(tagged("a house\na lake\ncat", per_image)))
    assert entry["outputs"]["4"]["text"] == shown, entry["status"]["messages"]


@pytest.mark.host
def test_a_tagger_that_gives_no_text_is_named(host: Host) -> None:
    assert "The connected list of texts is empty" in host.error(tagged("", per_image=True))


def tagged(tags: str, per_image: bool) -> Prompt:
    """A tagger's list of texts -> One-Step SR Prompt -> what arrives."""
    prompt = {"embeddings": "from text", "text": ["1", 0], "clip": ["2", 0], "text_per_image": per_image}
    return {
        "1": {"class_type": "MadeUpTagger", "inputs": {"tags": tags}},
        "2": {"class_type": "MadeUpClip", "inputs": {}},
        "3": {"class_type": "OneStepSRPrompt", "inputs": prompt},
        "4": {"class_type": "MadeUpShow", "inputs": {"conditioning": ["3", 0]}},
    }


@pytest.mark.host
def test_nodes_are_found_by_the_words_that_people_type(host: Host) -> None:
    names = [info["display_name"].lower() for kind, info in host.object_info.items() if kind.startswith("OneStepSR")]
    assert len(set(names)) == len(names)
    for word in ("tsd", "super resolution", "upscale", "4x"):
        assert any(word in name for name in names), word


@pytest.mark.host
def test_sizes_and_strength_reach_the_core_and_old_prompts_have_none(host: Host, expected: Path) -> None:
    prompt = quick_start(host, "sky.png")
    for name in ("size", "pixels", "megapixels", "strength", "wrap"):
        del node(prompt, UPSCALE)["inputs"][name]
    (old,) = host.results(prompt)
    assert_same_picture(old, expected / "sky.png")
    for settings, size in (
        ({"size": "longest side", "pixels": 150}, (150, 125)),
        ({"size": "megapixels", "megapixels": 0.03}, (190, 158)),
        ({"size": "width", "pixels": 48, "strength": 0.5, "wrap": "both"}, (48, 40)),
    ):
        (result,) = host.results(quick_start(host, "sky.png", **settings))
        assert Image.open(result).size == size
    (plain,) = host.results(quick_start(host, "sky.png", strength=0.0))
    bicubic = Image.open(host.base / "input" / "sky.png").resize((384, 320), Image.Resampling.BICUBIC)
    far, near = (np.abs(pixels(path) - np.asarray(bicubic).astype(int)).mean() for path in (old, plain))
    assert near < far


@pytest.mark.host
def test_rgb_and_mask_fit_stock_nodes(host: Host, expected: Path) -> None:
    prompt = quick_start(host, "transparent.png")
    upscaled = next(key for key, entry in prompt.items() if entry["class_type"] == UPSCALE)
    blend = {"image1": [upscaled, 1], "image2": ["scaled", 0], "blend_factor": 0.0, "blend_mode": "normal"}
    source = node(prompt, UPSCALE)["inputs"]["image"]
    scaled = {"image": source, "upscale_method": "bicubic", "scale_by": 4.0}
    prompt["scaled"] = {"class_type": "ImageScaleBy", "inputs": scaled}
    prompt["blend"] = {"class_type": "ImageBlend", "inputs": blend}
    prompt["join"] = {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["blend", 0], "alpha": [upscaled, 2]}}
    node(prompt, "SaveImage")["inputs"]["images"] = ["join", 0]
    (result,) = host.results(prompt)
    assert_same_picture(result, expected / "transparent.png")


@pytest.mark.host
def test_the_stock_upscale_node_runs_the_bundled_model(host: Host, expected: Path) -> None:
    """Its tiles are 512 px, so this picture is one."""
    prompt = quick_start(host, "sky.png")
    loader = next(key for key, entry in prompt.items() if entry["class_type"] == LOAD)
    inputs = {"upscale_model": [loader, 1], "image": node(prompt, UPSCALE)["inputs"]["image"]}
    prompt["stock"] = {"class_type": "ImageUpscaleWithModel", "inputs": inputs}
    node(prompt, "SaveImage")["inputs"]["images"] = ["stock", 0]
    del prompt[next(key for key, entry in prompt.items() if entry["class_type"] == UPSCALE)]
    (result,) = host.results(prompt)
    assert_same_picture(result, expected / "sky.png")


@pytest.mark.host
def test_a_region_is_upscaled_and_the_rest_enlarged(host: Host, expected: Path) -> None:
    prompt = quick_start(host, "half.png")
    inputs = node(prompt, UPSCALE)["inputs"]
    inputs["region"] = inputs.pop("mask")
    (found,) = host.results(prompt)
    result, margin = pixels(found), 24
    plain = Image.open(host.base / "input" / "half.png").convert("RGB").resize((384, 320), Image.Resampling.BICUBIC)
    middle = result.shape[1] // 2
    assert np.abs(result - np.asarray(plain).astype(int))[:, middle + margin :].mean() < 2
    assert np.abs(result - pixels(expected / "houses.png"))[:, : middle - margin].mean() < 6


def batch_of_two(host: Host) -> Prompt:
    prompt = quick_start(host, "houses.png")
    upscale = node(prompt, UPSCALE)["inputs"]
    prompt["second"] = {"class_type": "LoadImage", "inputs": {"image": "sky.png"}}
    prompt["batch"] = {"class_type": "ImageBatch", "inputs": {"image1": upscale["image"], "image2": ["second", 0]}}
    upscale["image"] = ["batch", 0]
    return prompt


@pytest.mark.host
def test_one_mask_serves_a_batch_and_a_wrong_number_is_an_error(host: Host, expected: Path) -> None:
    prompt = batch_of_two(host)
    prompt["mask"] = {"class_type": "SolidMask", "inputs": {"value": 0.25, "width": 64, "height": 64}}
    node(prompt, UPSCALE)["inputs"]["mask"] = ["mask", 0]
    for result, name in zip(host.results(prompt), ("houses.png", "sky.png"), strict=True):
        values = pixels(result)
        assert np.abs(values[..., :3] - pixels(expected / name)).max() <= 1
        assert set(np.unique(values[..., 3])) == {191}
    prompt["masks"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["as_image", 0], "amount": 3}}
    prompt["as_image"] = {"class_type": "MaskToImage", "inputs": {"mask": ["mask", 0]}}
    prompt["back"] = {"class_type": "ImageToMask", "inputs": {"image": ["masks", 0], "channel": "red"}}
    node(prompt, UPSCALE)["inputs"]["mask"] = ["back", 0]
    message = host.error(prompt)
    assert_one_sentence(message)
    assert "3 masks for 2 images" in message


@pytest.mark.host
def test_previews_arrive_with_every_tile(host: Host) -> None:
    client = uuid.uuid4().hex
    told = events(host, client)
    next(told)  # the greeting: from here on nothing is missed
    prompt_id = host.queue(quick_start(host, "houses.png", tile=128, seed=1), client)
    steps, previews = [], []
    for event in told:
        if isinstance(event, bytes) and event[:4] == b"\0\0\0\1":
            previews.append(Image.open(io.BytesIO(event[8:])))
        elif isinstance(event, dict) and event["type"] == "progress":
            steps.append((event["data"]["value"], event["data"]["max"]))
        elif isinstance(event, dict) and event["type"] in ("execution_success", "execution_error"):
            assert (event["type"], event["data"]["prompt_id"]) == ("execution_success", prompt_id)
            break
    told.close()
    total = steps[0][1]
    assert total > 4 and steps == [(step, total) for step in range(1, total + 1)]
    assert len(previews) == total
    width, height = Image.open(host.base / "input" / "houses.png").size
    assert previews[-1].width / previews[-1].height == pytest.approx(width / height, rel=0.02)


@pytest.mark.host
def test_cancel_stops_within_a_few_tiles(host: Host) -> None:
    client = uuid.uuid4().hex
    told = events(host, client)
    next(told)
    prompt_id = host.queue(quick_start(host, "large.png", tile=128), client)
    done, total = 0, 1
    for event in told:
        if not isinstance(event, dict):
            continue
        if event["type"] == "progress":
            done, total = event["data"]["value"], event["data"]["max"]
            if done == 3:
                host.post("/interrupt", {})
        if event["type"].startswith("execution_") and event["type"] not in ("execution_start", "execution_cached"):
            assert event["type"] == "execution_interrupted"
            break
    told.close()
    assert total > 200 and done < total / 4
    assert "execution_interrupted" in dict(host.wait(prompt_id)["status"]["messages"])
    assert len(host.results(quick_start(host, "sky.png", seed=2))) == 1


@pytest.mark.host
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"overlap": 1000}, "Overlap 1000 does not fit a tile"),
        ({"tile": 128, "overlap": 72}, "Overlap 72 does not fit a tile of 128"),
        ({"model": "empty.safetensors"}, "empty.safetensors is empty (0 bytes)"),
        ({"model": "other.safetensors"}, "other.safetensors is not a supported model"),
    ],
)
def test_failures_are_one_sentence(host: Host, settings: dict[str, object], words: str) -> None:
    message = host.error(quick_start(host, **settings))
    assert_one_sentence(message)
    assert message.startswith(words)


@pytest.mark.host
def test_models_come_from_both_folders_without_a_restart(host: Host, expected: Path) -> None:
    def offered() -> list[str]:
        return choices(host.get_json(f"/object_info/{LOAD}")[LOAD]["input"]["required"]["model"])

    published, own = ["SinSR_v2.pth", "TAD-SR.pth"], ["empty.safetensors", "mine.safetensors", "other.safetensors"]
    assert offered() == ["bundled", *published, *own, "ram_swin_large_14m.pth"]
    (result,) = host.results(quick_start(host, "sky.png", model="mine.safetensors"))
    assert_same_picture(result, expected / "sky.png")
    new = host.base / "models" / "onestep_sr" / "new" / "later.safetensors"
    new.parent.mkdir()
    shutil.copy(BUNDLED, new)
    assert "new/later.safetensors" in offered()
    (result,) = host.results(quick_start(host, "sky.png", model="new/later.safetensors"))
    assert_same_picture(result, expected / "sky.png")
    new.write_bytes(b"")  # the next run reads a replaced file again
    assert "is empty" in host.error(quick_start(host, "sky.png", model="new/later.safetensors", seed=3))


@pytest.mark.host
@pytest.mark.parametrize("masked", [False, True], ids=["open socket", "connected socket"])
def test_a_prompt_with_a_renamed_node_keeps_its_settings(host: Host, masked: bool) -> None:
    load = {"class_type": "LoadImage", "inputs": {"image": "houses.png"}}
    inputs = {"picture": ["1", 0], "seed": 5, "strength": 0.25, "mode": "b"} | ({"mask": ["1", 1]} if masked else {})
    prompt = {"1": load, "2": {"class_type": "MadeUpOld", "inputs": inputs, "_meta": {"title": "Mine"}}}
    entry = host.wait(host.queue(prompt))
    assert entry["outputs"]["2"]["text"] == [f"5 0.25 b {masked}"]


@pytest.mark.host
def test_pages_are_told_how_to_replace_a_renamed_node(host: Host) -> None:
    try:
        told = host.get_json("/node_replacements")["MadeUpOld"]
    except urllib.error.HTTPError:
        pytest.skip("this host's page does not replace nodes")
    pairs = [("image", "picture"), ("seed", "seed"), ("amount", "strength"), ("mode", "mode"), ("mask", "mask")]
    assert told == [
        {
            "old_node_id": "MadeUpOld",
            "new_node_id": "MadeUpNew",
            "old_widget_ids": ["seed", "", "strength", "mode"],
            "input_mapping": [{"new_id": new, "old_id": old} for new, old in pairs],
            "output_mapping": None,
        }
    ]


@pytest.mark.host
def test_a_queue_does_not_grow_memory(host: Host) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    sizes = []
    for run in range(10):  # the model changes with every run, so each loads one and drops one
        model = ("bundled", "mine.safetensors")[run % 2]
        assert host.results(quick_start(host, "houses.png", seed=100 + run, model=model))
        sizes.append(host.resident_bytes())
    assert min(sizes[7:]) <= 1.03 * min(sizes[2:5]), [size >> 20 for size in sizes]


@pytest.mark.host
def test_runs_after_the_host_has_unloaded_everything(host: Host, expected: Path) -> None:
    host.post("/free", {"unload_models": True, "free_memory": True})
    (result,) = host.results(quick_start(host, "sky.png"))
    assert_same_picture(result, expected / "sky.png")
