"""Where the published files of each family are."""

from __future__ import annotations

from ..checkpoints.download import GITHUB, GitHubFile, HuggingFaceFile, PublishedFile
from ..errors import UserError

NON_COMMERCIAL = "S-Lab License 1.0, non-commercial"
AUTOENCODER = GitHubFile("zsyOAOA/ResShift", "v2.0", "autoencoder_vq_f4.pth", NON_COMMERCIAL)
PUBLISHED: dict[str, tuple[PublishedFile, ...]] = {
    "sinsr": (GitHubFile("wyf0912/SinSR", "v1.0", "SinSR_v2.pth", "CC BY-NC-SA 4.0, non-commercial"), AUTOENCODER),
    "resshift": (
        GitHubFile("zsyOAOA/ResShift", "v2.0", "resshift_realsrx4_s15_v1.pth", NON_COMMERCIAL),
        AUTOENCODER,
    ),
    "resshift-s4": (
        GitHubFile("zsyOAOA/ResShift", "v2.0", "resshift_realsrx4_s4_v3.pth", NON_COMMERCIAL),
        AUTOENCODER,
    ),
    "sd3-medium": (
        HuggingFaceFile(
            "stabilityai/stable-diffusion-3-medium", "sd3_medium.safetensors", "Stability AI Community License"
        ),
    ),
}
# Their authors share them on pages that only a browser can use.
BY_HAND = {
    "tsd-sr": "Microtreei/TSD-SR",
    "tad-sr": "LearningHx/TAD-SR",
    "pisa-sr": "csslc/PiSA-SR",
    "osediff": "cswry/OSEDiff",
    "hypir": "XPixelGroup/HYPIR",
    "omgsr-s": "wuer5/OMGSR",
    "gdpo-sr": "Joyies/GDPO",
}


def files_of(name: str) -> tuple[PublishedFile, ...]:
    """Raises UserError for a name that is unknown, or whose files cannot be fetched."""
    if name in BY_HAND:
        raise UserError(f"{name} is shared on a page for browsers: follow the links in {GITHUB}/{BY_HAND[name]}.")
    if name not in PUBLISHED:
        raise UserError(f"{name!r} is unknown: choose one of {', '.join([*PUBLISHED, *BY_HAND])}.")
    return PUBLISHED[name]
