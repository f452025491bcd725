"""The packages that this folder needs, and saying which one is missing."""

from __future__ import annotations

from ..errors import UserError


def require_diffusers() -> None:
    """Raise UserError where diffusers is missing, or does not suit the rest."""
    try:
        from diffusers import SD3Transformer2DModel  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the second where it does not suit another package's version
        reason = str(error).splitlines()[0]
        raise UserError(
            f"A LoRA on a Stable Diffusion needs diffusers, which cannot be imported ({reason}): install 0.31.0 or "
            "newer, one that suits the installed torch and transformers."
        ) from error


def require_transformers(instead: str) -> None:
    """Raise UserError where transformers is missing; `instead` ends the sentence with an alternative."""
    from diffusers.utils import is_transformers_available

    if not is_transformers_available():
        raise UserError(f"Encoding a prompt needs a package: pip install transformers{instead}.")
