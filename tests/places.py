"""Paths of the checkout and of test files, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PHOTOS = TESTS / "photos"
HOST_SCRIPTS = TESTS / "host_scripts"
# Files in models/ that the templates are set to.
NAMED_IN_WORKFLOWS = (
    "checkpoints/sd3_medium.safetensors",
    "loras/tsdsr/transformer.safetensors",
    "onestep_sr/tsdsr/prompt_embeds.pt",
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints/v2-1_512-ema-pruned.safetensors",
    "loras/tadsr/unet/diffusion_pytorch_model.safetensors",
    "onestep_sr/ram_swin_large_14m.pth",
    "onestep_sr/TAD-SR.pth",
    "onestep_sr/SinSR_v2.pth",
    "loras/pisa_sr.pkl",
    "loras/osediff.pkl",
    "loras/HYPIR_sd2.pth",
)


def template(name: str) -> Path:
    """A template by its name without the number that orders the list, such as quick-start."""
    (path,) = (ROOT / "workflows").glob(f"onestep-sr-??-{name}.json")
    return path
