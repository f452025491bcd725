"""One-Step SR: one-step diffusion upscaling. A ComfyUI node pack and a Python package."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sr_models import SRModel, UpscaleOptions, UserError, load, upscale

__all__ = ["WEB_DIRECTORY", "SRModel", "UpscaleOptions", "UserError", "comfy_entrypoint", "load", "upscale"]

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's entry point (V3). The nodes are imported only when the host calls it."""
    from .nodes import OneStepSRExtension, replacements

    extension = OneStepSRExtension()
    await replacements.register(await extension.get_node_list())  # ComfyUI 0.8.0 never calls on_load
    return extension


def __getattr__(name: str) -> Any:
    """Import the core's public names when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import sr_models

    return getattr(sr_models, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
