"""One-Step SR: enlarge images with one network evaluation. ComfyUI loads this folder; so does `import onestep_sr`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's entry point (V3): the pack's nodes. Nothing is imported before the host asks."""
    from .nodes import OneStepSRExtension

    return OneStepSRExtension()
