"""Runs inside ComfyUI's own interpreter, from its folder: TAD-SeeSR through the pack's nodes.

python seesr_in_comfyui.py FOLDER_OF_ONESTEP_SR CASE.pt RESULTS.pt

The case: as in unet_in_comfyui.py, `images` (B, 3, H, W), `ram` (the folder of the tagger) and `encoded`, the prompts
that the CLIP may be asked for.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

package, case, result = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [".", package, str(Path(__file__).parents[1])]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import null_host  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 (before server.py puts comfy/utils.py in its way, as main.py does)
from onestep_sr.nodes import host, host_sampler, host_sd, tagging  # noqa: E402
from onestep_sr.nodes import stable_diffusion as nodes  # noqa: E402
from onestep_sr.sr_models.canvas.noise import canvas_noise  # noqa: E402
from onestep_sr.sr_models.core.options import UpscaleOptions  # noqa: E402
from onestep_sr.sr_models.core.upscale import upscale  # noqa: E402
from small_checkpoints import opened, read  # noqa: E402


class Encoded:
    """A CLIP that knows some prompts, and remembers what it was asked for."""

    def __init__(self, known):
        self.known, self.asked = known, []

    def tokenize(self, text):
        self.asked.append(text)
        return text

    def encode_from_tokens(self, text):
        return torch.cat([self.known[text], torch.full_like(self.known[text], 9.0)], dim=1)  # a second part of 77


def sentence(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def applied(case, model, vae):
    inputs = {"model": model, "vae": vae, "lora": case["lora"], "vae_lora": "auto"}
    return nodes.ApplyLoRA.execute(**inputs, strength_model=1.0, strength_vae=1.0).args


def sampled(model, vae, conditioning, images, *tiles):
    """The images through One-Step SR Sampler, as SamplerCustomAdvanced runs it with BasicGuider."""
    latent_format = model.get_model_object(host_sd.LATENT_FORMAT)
    codec, guider = host_sd.VAECodec(vae, latent_format), comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning})
    z_lr, sampler = codec.encode(images), host_sampler.OneStepSampler(*tiles)
    latent = latent_format.process_out(z_lr)
    result = guider.sample(canvas_noise(z_lr, 0), latent, sampler, torch.tensor([1.0, 0.0]))
    return codec.decode(latent_format.process_in(result)).clamp(0, 1)


def results_of(case):
    nodes.ApplyLoRA.hidden, clip = SimpleNamespace(unique_id="1", prompt={}), Encoded(case["encoded"])
    base_model, base_vae = opened(case), comfy.sd.VAE(sd=read(Path(case["folder"]) / "vae"))
    before = {name: tensor.clone() for name, tensor in base_model.model.state_dict().items()}
    model, vae = applied(case, base_model, base_vae)
    image, results = host.to_host(case["images"]), {}
    host.compute_dtype = lambda: torch.float32
    conditioning, results["tags"] = tagging.Tags.execute(image, model, clip, f"{case['ram']}", case["text"]).args
    sr_model = nodes.Model.execute(model, vae, conditioning, "auto").args[0].model
    sr_model = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0))
    results["whole"] = upscale(sr_model, case["images"], UpscaleOptions(1))
    results["tiled"] = upscale(sr_model, case["images"], UpscaleOptions(1, tile=32, overlap=16))
    plain, tiled = UpscaleOptions(1, color="none"), UpscaleOptions(1, color="none", tile=32, overlap=16)
    results["unmatched"] = upscale(sr_model, case["images"], plain)
    results["unmatched tiled"] = upscale(sr_model, case["images"], tiled)
    results["sampler"] = sampled(model, vae, conditioning, case["images"], None, None, 1)
    results["sampler tiled"] = sampled(model, vae, conditioning, case["images"], 4, 2, 2)
    again, vae = applied(case, base_model, base_vae)  # while the first one is loaded
    for way, recipe in (("noise", "tad-seesr-noise"), ("four steps", "tad-seesr-s4")):
        other = nodes.Model.execute(again, vae, conditioning, recipe).args[0].model
        other = replace(other, recipe=replace(other.recipe, shortest=0))
        results[way] = upscale(other, case["images"], UpscaleOptions(1))
    results["first again"] = upscale(sr_model, case["images"], UpscaleOptions(1))
    results["without CLIP"] = sentence(tagging.Tags.execute, image, model, None, "missing.pth", "")
    results["without tags"] = sentence(
        nodes.Model.execute, model, vae, [[next(iter(case["encoded"].values())), {}]], "auto"
    )
    results["another batch"] = sentence(upscale, sr_model, case["images"].repeat(2, 1, 1, 1), UpscaleOptions(1))
    without = [[prompt, {}] for prompt, _ in conditioning]
    results["sampler without tags"] = sentence(sampled, model, vae, without, case["images"], None, None, 1)
    three = case["images"][:1].expand(3, -1, -1, -1)
    results["sampler with another batch"] = sentence(sampled, model, vae, conditioning, three, None, None, 1)
    results["asked"] = list(clip.asked)
    results["larger"] = model.model_size() - base_model.model_size()
    comfy.model_management.unload_all_models()
    after = base_model.model.state_dict()
    results["as it was"] = before.keys() == after.keys() and all(torch.equal(after[n], before[n]) for n in before)

    def run(base_model, base_vae):
        model, vae = applied(case, base_model, base_vae)
        conditioning, _ = tagging.Tags.execute(image, model, clip, f"{case['ram']}", case["text"]).args
        sr_model = nodes.Model.execute(model, vae, conditioning, "auto").args[0].model
        upscale(replace(sr_model, recipe=replace(sr_model.recipe, shortest=0)), case["images"], UpscaleOptions(1))
        sampled(model, vae, conditioning, case["images"], 4, 2, 2)

    results["mixed devices"] = null_host.mixed(run, base_model, base_vae)
    return results


torch.set_grad_enabled(False)  # as the host runs its nodes
torch.save(results_of(torch.load(case)), result)
