"""The packages that this folder rests on, and saying which one is missing."""

from __future__ import annotations

from ..errors import UserError


def require_diffusers() -> None:
    """Raise UserError where diffusers is missing, or does not suit the rest."""
    try:
        from diffusers import SD3Transformer2DModel  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the second where it does not suit another package's version
        reason = str(error).splitlines()[0]
        raise UserError(
            f"TSD-SR needs diffusers, which cannot be imported here ({reason}): install one that suits the torch and "
            "transformers that are here, 0.31.0 or newer."
        ) from error


def require_transformers(instead: str) -> None:
    """Raise UserError where transformers is missing; `instead` ends the sentence with what else would do."""
    from diffusers.utils import is_transformers_available

    if not is_transformers_available():
        raise UserError(f"Encoding a prompt needs a package: pip install transformers{instead}.")
