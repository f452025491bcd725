"""The core, plain torch without a host. Public names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.model import SRModel
    from .core.options import UpscaleOptions
    from .core.pictures_in import upscale
    from .errors import UserError
    from .families.loading import load

__all__ = ["SRModel", "UpscaleOptions", "UserError", "load", "upscale"]

_HOMES = {
    "SRModel": "core.model",
    "UpscaleOptions": "core.options",
    "UserError": "errors",
    "load": "families.loading",
    "upscale": "core.pictures_in",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
