"""ComfyUI nodes. Each one is a schema and a call into the core."""

from comfy_api.latest import ComfyExtension, io

from . import downloads, host, images, plan_view, seamless, stable_diffusion, tagging
from .upscaling import LoadModel, UpscaleImage


class OneStepSRExtension(ComfyExtension):
    """The node pack's entry point for ComfyUI."""

    def __init__(self) -> None:
        host.register_model_folder()
        plan_view.add_route()
        downloads.add_route()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadModel,
            UpscaleImage,
            stable_diffusion.ApplyLoRA,
            stable_diffusion.Prompt,
            stable_diffusion.Sampler,
            stable_diffusion.Model,
            tagging.Tags,
            seamless.EncodeSeamless,
            seamless.DecodeSeamless,
            images.MatchColor,
            images.CompareImages,
        ]
