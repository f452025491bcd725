"""Checks for the packages that this folder needs."""

from __future__ import annotations

from ..errors import UserError


def require_diffusers() -> None:
    """Raise UserError if diffusers is missing or incompatible with other packages."""
    try:
        from diffusers import SD3Transformer2DModel  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError if another package's version is incompatible
        reason = str(error).splitlines()[0]
        raise UserError(
            f"A LoRA on a Stable Diffusion needs diffusers, which cannot be imported ({reason}): install a version "
            "from 0.31.0 on that is compatible with the installed torch and transformers."
        ) from error


def require_transformers(instead: str) -> None:
    """Raise UserError if transformers is missing; `instead` is added to the message as an alternative."""
    from diffusers.utils import is_transformers_available

    if not is_transformers_available():
        raise UserError(f"Encoding a prompt needs the package transformers: pip install transformers{instead}.")
