"""Why an autoencoder cannot run without seams, by the names of its classes in ComfyUI and diffusers.

Names only choose the words: whether it can run is decided by its modules, in `kinds`.
"""

from __future__ import annotations

from typing import Any

OWN_SHORTCUTS = "its changes of resolution have shortcuts of their own"
SEVERAL_FRAMES = "its norms take the statistics of several frames at once"
LATER_FRAMES = "its decoder also sees later frames"
NEIGHBOURS = "its decoder mixes neighbouring frames"
# Part of the full class name of the autoencoder, its decoder or the decoder's first layer -> why. The first that fits
# counts.
REASONS = {
    "comfy.taesd.taesd.": "its blocks hold norms of the whole picture",  # of Flux.2; the others are supported
    "comfy.taesd.taehv.": "its blocks remember the frame before",
    "temporal_decoder.": NEIGHBOURS,
    "temporal_ae.": NEIGHBOURS,
    "hunyuanimage_refiner": OWN_SHORTCUTS,
    "hunyuanvideo15": OWN_SHORTCUTS,
    "ldm.hunyuan_video.": OWN_SHORTCUTS,
    "autoencoder_kl_ltx": LATER_FRAMES,
    "lightricks.": LATER_FRAMES,
    "autoencoder_kl_hunyuan_video.": SEVERAL_FRAMES,
    "VideoConv3d": SEVERAL_FRAMES,  # HunyuanVideo in ComfyUI
    "CarriedConv3d": SEVERAL_FRAMES,
}


def refusal(autoencoder: Any) -> str:
    """The first half of a sentence that names the autoencoder and says why it is not supported."""
    decoder = getattr(autoencoder, "decoder", None)
    parts = (autoencoder, decoder, getattr(decoder, "conv_in", None))
    names = " ".join(f"{type(part).__module__}.{type(part).__name__}" for part in parts)
    why = next((f", because {reason}" for name, reason in REASONS.items() if name in names), "")
    return f"{type(autoencoder).__name__} {'cannot' if why else 'has layers that cannot'} run without seams{why}"
