"""The pack as users install it, from the registry's archive and with pip, in a real ComfyUI with nothing else in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_host import HOW_TO_GET_ONE, Host, installed_hosts, start, stop, to_prompt
from PIL import Image
from places import PHOTOS, ROOT, template
from registry_archive import write_archive

HOSTS = installed_hosts()
WAYS = ("archive", "pip")

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the registry, unpacked."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder / "node.zip")
    zipfile.ZipFile(folder / "node.zip").extractall(folder / "node")
    return folder / "node"


@pytest.fixture(scope="module", params=WAYS)
def pack(request: pytest.FixtureRequest, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a user puts into custom_nodes/, or links there."""
    if request.param == "archive":
        return archive
    source, site = tmp_path_factory.mktemp("source") / "node", tmp_path_factory.mktemp("site")
    shutil.copytree(archive, source)  # pip writes a folder build/ there
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)]
    subprocess.run(command, check=True)
    return site / "onestep_sr"


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def host(request: pytest.FixtureRequest, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    base = tmp_path_factory.mktemp("base")
    (base / "input").mkdir()
    shutil.copy(PHOTOS / "grass.png", base / "input" / "example.png")
    running = start(request.param, base, pack)
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
