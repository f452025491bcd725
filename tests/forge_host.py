"""Run scripts in a real Automatic1111, Forge, Forge Neo or reForge without a checkpoint, in a separate process."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from comfyui_host import free_port
from limits import HANGING_SECONDS
from places import HOST_SCRIPTS

SCRIPT = HOST_SCRIPTS / "in_forge.py"
OPTIONS = ("--skip-torch-cuda-test", "--skip-version-check", "--api")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}


@dataclass(frozen=True)
class WebUI:
    """A host: its folder in ~/forge unless the variable PREFIX_PATH names another, and its options for a CPU."""

    title: str
    prefix: str
    repository: str
    options: tuple[str, ...]
    checkpoints: str = "--ckpt-dir"
    requirements: str = "requirements_versions.txt"
    also: str = ""

    @property
    def folder(self) -> Path:
        name = self.repository.rpartition("/")[2].partition(",")[0]
        return Path(os.environ.get(f"{self.prefix}_PATH", Path.home() / "forge" / name))

    @property
    def interpreter(self) -> str | None:
        """The one in the variable PREFIX_PYTHON, or that of a virtual environment in the folder or beside it."""
        if f"{self.prefix}_PYTHON" in os.environ:
            return os.environ[f"{self.prefix}_PYTHON"]
        places = (self.folder, self.folder.parent)
        found = (place / name / "bin" / "python" for place in places for name in (".venv", "venv"))
        return next((str(path) for path in found if path.exists()), None)

    @property
    def is_installed(self) -> bool:
        return (self.folder / "webui.py").is_file() and self.interpreter is not None

    @property
    def how_to_get_it(self) -> str:
        return (
            f"no {self.title}: clone github.com/{self.repository} into ~/forge, install its {self.requirements} into a "
            f".venv in it or beside it{self.also}; or name one with {self.prefix}_PATH and {self.prefix}_PYTHON"
        )

    def run(self, data: Path, *options: str) -> str:
        """Run SCRIPT (described there) with its own data folder; returns its output."""
        command = [self.interpreter, SCRIPT, *OPTIONS, *self.options, "--data-dir", data]
        command += [self.checkpoints, data / "checkpoints", *options]
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANGING_SECONDS,
            env=os.environ | ENVIRONMENT,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    @contextmanager
    def page(self, data: Path) -> Iterator[str]:
        """A running server with its own data folder; gives the page's address."""
        port = free_port()
        # gradio serves files below real paths only, and Forge Neo's page needs those of its own folder.
        folder = self.folder.resolve()
        command = [self.interpreter, "launch.py", "--skip-prepare-environment", "--skip-install", *OPTIONS]
        command += [*self.options, "--data-dir", data, self.checkpoints, data / "checkpoints", "--port", port]
        command += ["--gradio-allowed-path", folder]
        address, end = f"http://127.0.0.1:{port}/", time.monotonic() + HANGING_SECONDS
        with (data / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), cwd=folder, stdout=log, stderr=log, env=os.environ | ENVIRONMENT
            )
        try:
            while not _answers(address):
                assert process.poll() is None and time.monotonic() < end, (data / "log.txt").read_text()[-5000:]
                time.sleep(0.5)
            yield address
        finally:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


NO_MODEL = ("--skip-load-model-at-start", "--no-download-sd-model")
STABILITY = ", and clone Stability-AI/stablediffusion, Stability-AI/generative-models, crowsonkb/k-diffusion, "
STABILITY += "salesforce/BLIP and AUTOMATIC1111/stable-diffusion-webui-assets into its repositories, under the names "
STABILITY += "in modules/paths.py and modules/launch_utils.py"
AUTOMATIC1111 = WebUI(
    "Automatic1111 1.10",
    "A1111",
    "AUTOMATIC1111/stable-diffusion-webui",
    ("--use-cpu", "all", "--no-half", *NO_MODEL),
    also=STABILITY,
)
FORGE = WebUI(
    "Forge",
    "FORGE",
    "lllyasviel/stable-diffusion-webui-forge",
    ("--always-cpu",),
    also=", and clone lllyasviel/huggingface_guess into its repositories",
)
FORGE_NEO = WebUI(
    "Forge Neo",
    "FORGE_NEO",
    "Haoming02/sd-webui-forge-classic, branch neo,",
    ("--cpu",),
    checkpoints="--ckpt-dirs",
    requirements="requirements.txt",
)
REFORGE = WebUI(
    "reForge",
    "REFORGE",
    "Panchovix/stable-diffusion-webui-reForge",
    ("--always-cpu", "--unet-in-fp8-e4m3fn"),
    also=STABILITY,
)
HOSTS = {host.prefix: host for host in (AUTOMATIC1111, FORGE, FORGE_NEO, REFORGE)}
