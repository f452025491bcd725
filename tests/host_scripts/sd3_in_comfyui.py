"""Runs inside ComfyUI's own interpreter, from its folder: TSD-SR through the pack's host layer, to floats.

python sd3_in_comfyui.py FOLDER_OF_ONESTEP_SR SMALL_SD3 SMALL_SD35 PICTURE.pt RESULT.pt
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

package, files, sd35_files, picture, result = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [".", package, str(Path(__file__).parents[1])]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import null_host  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 (before server.py puts comfy/utils.py in its way, as main.py does)
from comfy import model_management  # noqa: E402
from onestep_sr.nodes import host, host_lora, host_sampler, host_sd, host_vae  # noqa: E402
from onestep_sr.sr_models.checkpoints import prompt_embeddings  # noqa: E402
from onestep_sr.sr_models.core.options import UpscaleOptions  # noqa: E402
from onestep_sr.sr_models.core.step import OneStep  # noqa: E402
from onestep_sr.sr_models.core.upscale import upscale  # noqa: E402
from onestep_sr.sr_models.families.registry import read_lora  # noqa: E402


def all_in_one(model, vae, conditioning, image, **options):
    sr_model = host_lora.open_model(model, vae, conditioning, "tsd-sr").model
    bare = replace(sr_model, recipe=replace(sr_model.recipe, shortest=0, color="none"))
    return upscale(bare, image, UpscaleOptions(1, **options))


def denoiser(model):
    return host_lora.open_model(model, vae, conditioning, "tsd-sr").model.denoiser


def stock_parts(model, vae, conditioning, image, tile=64, overlap=8, batch=1, mask=None):
    """VAE Encode -> SamplerCustomAdvanced with BasicGuider -> VAE Decode, as the host's nodes do it."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning})
    latent = vae.encode(image.movedim(1, -1))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    sampler = host_sampler.OneStepSampler(tile, overlap, batch)
    sampled = guider.sample(noise, latent, sampler, torch.tensor([1.0, 0.0]), denoise_mask=mask, seed=1)
    return vae.decode(sampled).movedim(-1, 1)


def weights_of(patcher):
    return {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}


def sentence(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def small_sd15():
    config = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1]}
    config |= {"channel_mult": [1, 2], "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768}
    config |= {"transformer_depth": [0, 1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 0, 0]}
    model = comfy.supported_models.SD15(config).get_model({}, device="cpu")
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def taesd(channels):
    return comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict())


def without_clamp(vae):
    vae.first_stage_model.taesd_decoder[0] = torch.nn.Identity()
    return vae


torch.set_grad_enabled(False)  # as the host runs its nodes
files, image = Path(files), torch.load(picture)
base_model, _, base_vae = comfy.sd.load_checkpoint_guess_config(
    str(files / "sd3.safetensors"), output_vae=True, output_clip=False
)[:3]
embeddings = prompt_embeddings.read_embeddings(files / "embeddings")
conditioning = [[embeddings.prompt, {"pooled_output": embeddings.pooled}]]
weights = read_lora(files / "tsdsr" / "transformer.safetensors")
before = weights_of(base_model), weights_of(base_vae.patcher), base_vae.encode(image.movedim(1, -1))
model, warning = host_lora.apply_lora(base_model, weights, 1.0)
vae = host_lora.apply_vae_lora(base_vae, weights, 1.0)

results = {
    "whole": all_in_one(model, vae, conditioning, image),
    "parts": stock_parts(model, vae, conditioning, image),
    "tiled": all_in_one(model, vae, conditioning, image, tile=64, overlap=16),
    "tiled parts": stock_parts(model, vae, conditioning, image, tile=8, overlap=2),
    "batched parts": stock_parts(model, vae, conditioning, image, tile=8, overlap=2, batch=3),
    "without step": vae.decode(vae.encode(image.movedim(1, -1))).movedim(-1, 1),
    "masked": stock_parts(model, vae, conditioning, image, mask=torch.zeros(1, 1, *image.shape[-2:])),
    "warning": warning,
    "unshifted": sentence(stock_parts, base_model, vae, conditioning, image),
    "patched VAE keys": sorted(vae.patcher.patches),
    "encoded after": base_vae.encode(image.movedim(1, -1)),
    "encoded before": before[2],
}
comfy.model_management.unload_all_models()
results["model as it was"] = all(torch.equal(t, before[0][name]) for name, t in weights_of(base_model).items())
results["VAE as it was"] = all(torch.equal(t, before[1][name]) for name, t in weights_of(base_vae.patcher).items())
results["latent format as it was"] = type(base_model.model.latent_format).__name__

at_250 = {"tsd-sr": replace(weights.family.recipe("tsd-sr"), step=OneStep(250.0, noised=True))}
noised = replace(weights, family=replace(weights.family, recipes=at_250))
results["noised at 250"] = all_in_one(host_lora.apply_lora(base_model, noised, 1.0)[0], vae, conditioning, image)
results["half"] = all_in_one(host_lora.apply_lora(base_model, weights, 0.5)[0], vae, conditioning, image)
half, _ = host_lora.apply_lora(base_model, weights, 0.5)
twice, _ = host_lora.apply_lora(half, weights, 0.5)
results["two halves"] = all_in_one(twice, vae, conditioning, image)

wide = torch.rand(2, 72, 200, 3, generator=torch.Generator().manual_seed(5))
stock, steps = vae.encode(wide), []
results["stock encode"] = stock
results["seamless encode"] = host_vae.encode(vae, wide, 96 * 2**20, lambda done, total: steps.append((done, total)))
results["stock decode"] = vae.decode(stock)
results["seamless decode"] = host_vae.decode(vae, stock, 96 * 2**20, lambda done, total: steps.append((done, total)))
results["steps"] = steps

checkpoint = comfy.utils.load_torch_file(str(files / "sd3.safetensors"))
transformer = {name: t for name, t in checkpoint.items() if name.startswith("model.diffusion_model.")}
fp8 = comfy.sd.load_diffusion_model_state_dict(dict(transformer), model_options={"dtype": torch.float8_e4m3fn})
results["fp8 weights"] = str(fp8.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1.weight.dtype)
fp8 = host_lora.apply_lora(fp8, weights, 1.0)[0]
bf16 = comfy.sd.load_diffusion_model_state_dict(dict(transformer), model_options={"dtype": torch.bfloat16})
bf16 = host_lora.apply_lora(bf16, weights, 1.0)[0]
computed_in = str(denoiser(bf16).dtype)
results["before a run"] = str(denoiser(bf16).in_float32().dtype), str(denoiser(bf16).dtype) == computed_in
results["fp8"] = all_in_one(fp8, vae, conditioning, image)
exact = denoiser(fp8).in_float32()
results["fp8 in float32"] = all_in_one(exact.model, vae, conditioning, image)
results["precisions"] = [str(denoiser(m).dtype) for m in (model, fp8, exact.model)]

sd35 = comfy.sd.load_diffusion_model(str(Path(sd35_files) / "sd3.safetensors"))
patched, results["SD3.5 warning"] = host_lora.apply_lora(sd35, weights, 1.0)
results["SD3.5"] = all_in_one(patched, vae, conditioning, image)

trained = read_lora(Path(sd35_files) / "trained")
patched, results["trained on SD3.5 warning"] = host_lora.apply_lora(sd35, trained, 1.0)
results["trained on SD3.5"] = all_in_one(patched, host_lora.apply_vae_lora(base_vae, trained, 1.0), conditioning, image)

asked = []
loads = model_management.load_models_gpu
model_management.load_models_gpu = lambda models, memory=0, **options: (
    asked.append(memory) or loads(models, memory_required=memory, **options)
)
opened = host_lora.open_model(model, vae, conditioning, "tsd-sr")
host.adopt(replace(opened, modules=(torch.nn.Linear(2, 2),))).to_device(12345)
results["asked to free"] = asked
model_management.load_models_gpu = loads
untiled = vae.memory_used_decode((1, 16, 256, 256), torch.float32)
results["for 2048 px"] = host_vae._memory(vae, untiled, 2048, 2048), untiled
results["for 64 px"] = host_vae._memory(vae, 1e6, 64, 64)


def cut(adapters, module):
    [adapter] = adapters
    return (replace(adapter, update={name: low for name, low in adapter.update.items() if name != module}),)


part = replace(weights, network=cut(weights.network, "proj_out"))
vae_part = replace(weights, vae=cut(weights.vae, "encoder.mid_block.attentions.0.to_q"))
results["refusals"] = {
    "part of a LoRA": sentence(host_lora.apply_lora, base_model, part, 1.0),
    "part of a VAE's": sentence(host_lora.apply_vae_lora, base_vae, vae_part, 1.0),
    "SD1.5": sentence(host_lora.apply_lora, small_sd15(), weights, 1.0),
    "VAE of 4 channels": sentence(host_sd.require_vae, taesd(4), 16, str(weights.base)),
    "TAESD": sentence(host_sd.require_vae, taesd(16), 16, str(weights.base)),
    "seamless VAE with another clamp": sentence(host_vae.decode, without_clamp(taesd(4)), torch.zeros(1, 4, 8, 8)),
    "sigmas": sentence(host_sampler.checked_start, torch.zeros(1, 16, 8, 8), torch.tensor([0.5, 0.0]), 16),
    "latent": sentence(host_sampler.checked_start, torch.zeros(1, 4, 8, 8), torch.tensor([1.0, 0.0]), 16),
}


def run(base_model, base_vae):
    model, _ = host_lora.apply_lora(base_model, weights, 1.0)
    vae = host_lora.apply_vae_lora(base_vae, weights, 1.0)
    all_in_one(model, vae, conditioning, image, tile=64, overlap=16)
    stock_parts(model, vae, conditioning, image, tile=8, overlap=2)


model_management.unload_all_models()
results["mixed devices"] = null_host.mixed(run, base_model, base_vae)
torch.save(results, result)
