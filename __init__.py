"""One-Step SR: enlarge images with one network evaluation. ComfyUI loads this folder; so does `import onestep_sr`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sr_models import SRModel, UpscaleOptions, UserError, load, upscale

__all__ = ["WEB_DIRECTORY", "SRModel", "UpscaleOptions", "UserError", "comfy_entrypoint", "load", "upscale"]

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's entry point (V3): the pack's nodes. Nothing is imported before the host asks."""
    from .nodes import OneStepSRExtension

    return OneStepSRExtension()


def __getattr__(name: str) -> Any:
    """The core's public names, imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import sr_models

    return getattr(sr_models, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
