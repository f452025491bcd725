"""Automatic1111 and Forge run this file before they start. In ComfyUI and elsewhere it does nothing.

It installs this pack's two dependencies if they are missing, but not the dependencies of those, so torch and numpy
stay unchanged.
"""

from __future__ import annotations

PACKAGES = ("safetensors", "einops")


def main() -> None:
    try:
        from modules.launch_utils import is_installed, run_pip
    except ImportError:
        return
    for package in PACKAGES:
        if not is_installed(package):
            run_pip(f"install --no-deps {package}", f"{package} for One-Step SR")


if __name__ == "__main__":
    main()
