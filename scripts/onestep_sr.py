"""Automatic1111 and Forge run this file at their start: it gives them the Extras section, the upscalers and settings.

They take the section from this module's classes, and upscalers from the subclasses of their own `Upscaler`. The
extension's folder may have any name and `onestep_sr` may be installed besides, so that the folder becomes a package
under a name of its own. There must be no `__init__.py` beside this file: `scripts` is a package that all extensions
share.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

PACKAGE = "onestep_sr_extension"
ADAPTER = f"{PACKAGE}.scripts.onestep_sr_webui"

if PACKAGE not in sys.modules:  # the host runs this file again when it reloads its page
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules[PACKAGE] = package

import_module(f"{ADAPTER}.settings").add_settings()
import_module(f"{ADAPTER}.upscaler")
ExtrasSection = import_module(f"{ADAPTER}.extras").ExtrasSection
