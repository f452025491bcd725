"""Automatic1111 and Forge run this file before they start. Anywhere else, ComfyUI included, it does nothing.

It installs what the host lacks of this pack's two dependencies, without anything that they might bring along, so
that torch and numpy stay as they are.
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
