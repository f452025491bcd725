"""Automatic1111 and Forge run this file when they start. It adds the Extras section, the upscalers and the settings.

The hosts find the section among this module's classes, and upscalers among subclasses of their `Upscaler`. Forge Neo
and reForge list a fixed set of upscalers, to which ours are added when all scripts are loaded. The extension's folder
can have any name, and `onestep_sr` may also be installed, so the folder is imported as a package with its own name.
This folder must not contain an `__init__.py`, because all extensions share the package `scripts`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from modules.script_callbacks import on_before_ui

PACKAGE = "onestep_sr_extension"
ADAPTER = f"{PACKAGE}.scripts.onestep_sr_webui"

if PACKAGE not in sys.modules:  # the host runs this file again when the UI is reloaded
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules[PACKAGE] = package

import_module(f"{ADAPTER}.settings").add_settings()
on_before_ui(import_module(f"{ADAPTER}.upscaler").keep_listed)
ExtrasSection = import_module(f"{ADAPTER}.extras").ExtrasSection
