"""Run scripts in a real Forge without a checkpoint, in a separate process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from limits import HANGING_SECONDS
from places import HOST_SCRIPTS

SCRIPT = HOST_SCRIPTS / "in_forge.py"
HOW_TO_GET_ONE = (
    "no Forge: clone github.com/lllyasviel/stable-diffusion-webui-forge into ~/forge, install its "
    "requirements_versions.txt into a .venv in it or beside it, and clone huggingface_guess into its repositories; "
    "or name one with FORGE_PATH and FORGE_PYTHON"
)
OPTIONS = ["--skip-torch-cuda-test", "--always-cpu", "--skip-version-check", "--api"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}


def installed_host() -> Path | None:
    folder = Path(os.environ.get("FORGE_PATH", Path.home() / "forge" / "stable-diffusion-webui-forge"))
    return folder if (folder / "modules_forge").is_dir() and interpreter(folder) else None


def interpreter(folder: Path) -> str | None:
    if "FORGE_PYTHON" in os.environ:
        return os.environ["FORGE_PYTHON"]
    found = (place / name / "bin" / "python" for place in (folder, folder.parent) for name in (".venv", "venv"))
    return next((str(path) for path in found if path.exists()), None)


def run_in_forge(folder: Path, data: Path, *options: str) -> str:
    """Run SCRIPT (described there) with its own data folder; returns its output."""
    command = [interpreter(folder), SCRIPT, *OPTIONS, "--data-dir", data, *options]
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANGING_SECONDS,
        env=os.environ | ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
