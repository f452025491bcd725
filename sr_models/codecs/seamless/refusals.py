"""Why an autoencoder cannot run without seams, by the names of its classes in ComfyUI and diffusers.

Names only choose the words: whether it can run is decided by its modules, in `kinds`.
"""

from __future__ import annotations

from typing import Any

NOISE = "its decoder also takes a timestep and noise"
NEIGHBOURS = "its decoder mixes neighbouring frames"
# Part of the full class name of the autoencoder, its decoder or the decoder's first layer -> why. The first that fits
# counts.
REASONS = {
    "comfy.taesd.taesd.": "its blocks hold norms of the whole picture",  # of Flux.2; the others are supported
    "comfy.taesd.taehv.": "its blocks remember the frame before",
    "temporal_decoder.": NEIGHBOURS,
    "temporal_ae.": NEIGHBOURS,
    "hunyuanimage_refiner": "it takes every frame for the first one",
    "vae_refiner.": "it adds empty frames before the first and after the last one",  # 1.5 is supported
    "autoencoder_kl_ltx": NOISE,  # without a timestep they are supported
    "lightricks.": NOISE,
}


def refusal(autoencoder: Any) -> str:
    """The first half of a sentence that names the autoencoder and says why it is not supported."""
    decoder = getattr(autoencoder, "decoder", None)
    parts = (autoencoder, decoder, getattr(decoder, "conv_in", None))
    names = " ".join(f"{type(part).__module__}.{type(part).__name__}" for part in parts)
    why = next((f", because {reason}" for name, reason in REASONS.items() if name in names), "")
    return f"{type(autoencoder).__name__} {'cannot' if why else 'has layers that cannot'} run without seams{why}"
