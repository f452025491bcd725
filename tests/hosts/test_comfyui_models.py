"""Models that need no Stable Diffusion inside real ComfyUI, with small networks, to floats: TAD-faceir and AdcSR.

What the nodes give is compared with the core in the same process, which the tests in `families/` compare with the
equations.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_host import HOW_TO_GET_ONE, installed_hosts, interpreter
from limits import HANGING_SECONDS
from places import HOST_SCRIPTS, ROOT
from small_models import write_adcsr, write_faces

HOSTS = installed_hosts()
SIZES = {"adcsr": (132, 200), "tad-faceir": (64, 128)}

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=HOSTS or [None], ids=lambda folder: folder.name if folder else "none")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    if request.param is None:
        pytest.skip(HOW_TO_GET_ONE)
    base = tmp_path_factory.mktemp("models")
    (base / "onestep_sr").symlink_to(ROOT, target_is_directory=True)
    image = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(3))
    files: dict[str, tuple[Path, torch.Tensor, float]] = {
        "adcsr": (write_adcsr(base), image[:, :, :33, :50], 4.0),
        "tad-faceir": (write_faces(base), image, 1.0),
    }
    cases = {name: {"file": str(f), "image": i, "scale": s} for name, (f, i, s) in files.items()}
    torch.save(cases, base / "cases.pt")
    script = HOST_SCRIPTS / "models_in_comfyui.py"
    command = [interpreter(request.param), script, base, base / "cases.pt", base / "out.pt"]
    run = subprocess.run(
        command, check=False, cwd=request.param, capture_output=True, text=True, timeout=HANGING_SECONDS
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(base / "out.pt")


@pytest.mark.parametrize("name", SIZES)
def test_the_nodes_give_what_the_core_gives(name, results) -> None:
    found = results[name]
    assert found["picture"].shape == (1, 3, *SIZES[name])
    assert (found["picture"] - found["plain"]).abs().max() < 1e-4
    assert found["picture"].std() > 0.05, "not a flat picture"


def test_only_a_licence_without_commercial_use_is_shown_on_the_node(results) -> None:
    assert [text for text in results["adcsr"]["shown"] if "icence" in text] == []
    assert "may not be used commercially" in results["tad-faceir"]["shown"][0]
