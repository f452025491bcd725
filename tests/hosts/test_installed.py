"""The pack as users install it, from the registry's archive and with pip, in a real ComfyUI with nothing else in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_host import HOW_TO_GET_ONE, ONE_THREAD, PACK, Host, installed_hosts, start, stop, to_prompt
from limits import HANGING_SECONDS
from PIL import Image
from places import HOST_SCRIPTS, PHOTOS, ROOT, template
from registry_archive import write_archive

HOSTS = installed_hosts()
ARCHIVE, PIP = "archive", "pip"
VALIDATE_ROUTE = HOST_SCRIPTS / "validate_route"
COMFY_TEST = os.environ.get("COMFY_TEST")

pytestmark = [pytest.mark.host, pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")]


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the unpacked archive of the registry is, and where pip has installed the pack."""
    folder = tmp_path_factory.mktemp("packs")
    write_archive(folder / "node.zip")
    for copy in ("archive", "source"):  # pip writes a folder build/ into its source
        zipfile.ZipFile(folder / "node.zip").extractall(folder / copy)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site"]
    subprocess.run([*map(str, install), str(folder / "source")], check=True)
    return {ARCHIVE: folder / "archive", PIP: folder / "site" / "onestep_sr"}


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def comfyui(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    return request.param


@pytest.fixture(scope="module", params=(ARCHIVE, PIP))
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def host(comfyui: Path, way: str, packs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("base")
    for folder in ("input", PACK.parent):
        (base / folder).mkdir()
    shutil.copy(PHOTOS / "grass.png", base / "input" / "example.png")
    if way == ARCHIVE:
        shutil.copytree(packs[way], base / PACK)
    else:
        (base / PACK).symlink_to(packs[way], target_is_directory=True)
    shutil.copytree(VALIDATE_ROUTE, base / PACK.parent / VALIDATE_ROUTE.name)
    running = start(comfyui, base)
    running.post("/api/settings", {"Comfy.TutorialCompleted": True})
    yield running
    stop(running)


def test_quick_start_runs(host: Host) -> None:
    (result,) = host.results(to_prompt(json.loads(template("quick-start").read_text()), host.object_info))
    width, height = Image.open(PHOTOS / "grass.png").size
    assert Image.open(result).size == (4 * width, 4 * height)
    assert not re.search(r"Traceback|IMPORT FAILED|Cannot import", host.log)


def test_the_page_gets_templates_blueprints_texts_scripts_and_help(host: Host) -> None:
    assert len(host.get_json("/workflow_templates")["onestep_sr"]) == len([*(ROOT / "workflows").glob("*.json")])
    blueprints = {entry["name"] for entry in host.get_json("/global_subgraphs").values()}
    assert blueprints >= {path.stem for path in (ROOT / "subgraphs").glob("*.json")}
    assert "OneStepSRUpscaleImage" in host.get_json("/i18n")["uk"]["nodeDefs"]
    for file in (ROOT / "web").rglob("*.*"):
        assert host.get(f"/extensions/onestep_sr/{file.relative_to(ROOT / 'web').as_posix()}") == file.read_bytes()


@pytest.mark.skipif(not COMFY_TEST, reason="no comfy-test: name its command with COMFY_TEST")
def test_comfy_test_finds_nothing(host: Host, way: str, tmp_path: Path) -> None:
    """comfy-test's levels on this server; its Python must have what ComfyUI's has."""
    if way == PIP:
        pytest.skip("comfy-test expects the pack's files in custom_nodes/")
    (tmp_path / "server.log").write_text(host.log)  # read for errors at import
    settings = {"PYTHONPATH": str(host.folder), "COMFY_TEST_LOGS_DIR": str(tmp_path)}
    address = f"http://127.0.0.1:{host.port}"
    command = [COMFY_TEST, "run", "--config", str(ROOT / "comfy-test.toml"), "--server-url", address]
    report = subprocess.run(
        command,
        check=False,
        cwd=host.base / PACK,
        env=os.environ | ONE_THREAD | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANGING_SECONDS,
    )
    print(report.stdout)  # `-rP` shows it
    assert report.returncode == 0
