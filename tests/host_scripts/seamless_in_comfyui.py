"""Runs inside ComfyUI's own interpreter, from its folder: the seamless VAE beside ComfyUI's classes.

Networks have random weights. Prints one line of JSON: by name, the largest differences of decoding and encoding.
"""

from __future__ import annotations

import json
import sys

sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine  # noqa: E402
from comfy.ldm.wan import vae2_2  # noqa: E402
from comfy.ldm.wan.vae import WanVAE  # noqa: E402
from onestep_sr.sr_models.codecs import seamless  # noqa: E402

torch.manual_seed(0)
torch.set_grad_enabled(False)


def random(channels, quantized):
    config = {"double_z": True, "z_channels": channels, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    config |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    weights = AutoencoderKL(ddconfig=config, embed_dim=channels).state_dict()
    for name, t in weights.items():
        scale, offset = (t[0].numel() ** -0.5, 0) if t.ndim > 1 else (0.2, "norm" in name and "weight" in name)
        weights[name] = torch.randn(t.shape) * scale + offset
    return {name: t for name, t in weights.items() if quantized or "quant_conv" not in name}


def stir(network):
    for name, t in network.state_dict().items():
        if t.is_floating_point():
            scale = t[0].numel() ** -0.5 if t.ndim > 1 and t[0].numel() > 1 else 0.2
            t.copy_(torch.randn(t.shape) * scale + ((t.ndim == 1 and "weight" in name) or "gamma" in name))
            if "running_var" in name or "std-of-means" in name:
                t.abs_().add_(0.5)
    return network


def differences(network, latent, image, **options):
    size = (image.shape[3] * 1536 * 3) * 4 * 4
    return [
        (seamless.decode(network, latent, budget=size, **options) - network.decode(latent)).abs().max().item(),
        (seamless.encode(network, image, budget=2**30, **options) - network.encode(image)).abs().max().item(),
    ]


results = {}
for channels, quantized in ((4, True), (16, False)):
    vae = comfy.sd.VAE(sd=random(channels, quantized), dtype=torch.float32)
    latent, image = torch.randn(1, channels, 9, 12), torch.rand(1, 3, 64, 72) * 2 - 1
    results[f"{channels} channels"] = differences(vae.first_stage_model, latent, image)

config = {"double_z": True, "z_channels": 8, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
config |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
flux_2 = stir(AutoencoderKL(ddconfig=config | {"batch_norm_latent": True}, embed_dim=8).eval())
results["Flux.2"] = differences(flux_2, torch.randn(1, 32, 5, 7), torch.rand(1, 3, 80, 112) * 2 - 1)
config = {"dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
wan = stir(WanVAE(**config, temperal_downsample=[False, True, True]).eval())
for frames in (1, 4):
    video = torch.rand(1, 3, 4 * frames, 61, 83) * 2 - 1
    results[f"Wan, {frames} frames"] = differences(wan, torch.randn(1, 16, frames, 7, 9), video)
config = {"dim": 16, "dec_dim": 24, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
wan_2_2 = stir(vae2_2.WanVAE(**config, temperal_downsample=[False, True, True]).eval())
for frames in (1, 5):
    video = torch.rand(1, 3, 4 * frames - 3, 80, 112) * 2 - 1
    results[f"Wan 2.2, {frames} frames"] = differences(wan_2_2, torch.randn(1, 16, frames, 5, 7), video)

config = {"in_channels": 3, "out_channels": 3, "z_channels": 8, "block_out_channels": (32, 32, 64, 64)}
config |= {"num_res_blocks": 1, "ffactor_spatial": 8}
hunyuan = AutoencodingEngine(
    regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
    encoder_config={"target": "comfy.ldm.hunyuan_video.vae.Encoder", "params": config},
    decoder_config={"target": "comfy.ldm.hunyuan_video.vae.Decoder", "params": config},
)
hunyuan_differences = differences(stir(hunyuan.eval()), torch.randn(1, 8, 5, 7), torch.rand(1, 3, 40, 72) * 2 - 1)
results["Hunyuan Image"] = hunyuan_differences


def video_network(network, sides, factor, time, channels):
    """As many frames as pass in one group, and more."""
    for frames in (1, 3, 5):
        latent, count = torch.randn(1, channels, frames, *sides), time * (frames - 1) + 1
        video = torch.rand(1, 3, count, factor * sides[0], factor * sides[1]) * 2 - 1
        yield f"{frames} frames", differences(network, latent, video)


config = {"double_z": True, "z_channels": 8, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
config |= {"ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
hunyuan = stir(AutoencoderKL(ddconfig=config | {"conv3d": True, "time_compress": 4}, embed_dim=8).eval())
results |= {f"HunyuanVideo, {name}": found for name, found in video_network(hunyuan, (5, 7), 8, 4, 8)}


def with_refiners(refiner):
    config = {"in_channels": 3, "out_channels": 3, "z_channels": 8, "block_out_channels": (32, 32, 64, 64)}
    config |= {"num_res_blocks": 1, "ffactor_spatial": 8, "ffactor_temporal": 4, "refiner_vae": refiner}
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"},
        encoder_config={"target": "comfy.ldm.hunyuan_video.vae_refiner.Encoder", "params": config},
        decoder_config={"target": "comfy.ldm.hunyuan_video.vae_refiner.Decoder", "params": config},
    ).eval()


hunyuan = stir(with_refiners(True))
results |= {f"HunyuanVideo 1.5, {name}": found for name, found in video_network(hunyuan, (5, 7), 8, 4, 8)}

few, more = {"num_layers": 1}, {"multiplier": 2}
ltx = {"dims": 3, "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform"}
ltx |= {"encoder_base_channels": 16, "decoder_base_channels": 16, "causal_decoder": False}
blocks = [["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]]
network = stir(VideoVAE(config=ltx | {"blocks": blocks}).eval())
results |= {f"LTX-Video, {name}": found for name, found in video_network(network, (3, 4), 32, 8, 128)}
down = [["res_x", few], ["compress_space_res", more], ["compress_time_res", more], ["compress_all_res", more]]
up = [["res_x", few], *[["compress_all", more | {"residual": True}]] * 3, ["res_x", few]]
ltx |= {"encoder_blocks": [*down, ["compress_all_res", more], ["res_x", few]], "decoder_blocks": up}
network = stir(VideoVAE(config=ltx).eval())
results |= {f"LTX-2, {name}": found for name, found in video_network(network, (3, 4), 32, 8, 128)}

before = vae.first_stage_model.decode(latent)
patcher = vae.patcher.clone()
names = ("decoder.mid.block_1.conv1.weight", "decoder.mid.block_1.norm1.weight", "encoder.down.0.block.0.norm2.bias")
state = vae.first_stage_model.state_dict()
patcher.add_patches({name: (torch.randn(state[name].shape) * state[name].std() * 0.5,) for name in names})
comfy.model_management.load_models_gpu([patcher])
network = patcher.model
results["patched changes"] = (network.decode(latent) - before).abs().max().item()
results["patched"] = differences(network, latent, image)

network.bfloat16()
for module in network.modules():
    if hasattr(module, "comfy_cast_weights"):
        module.comfy_cast_weights = True
network.decoder.norm_out.weight_function = [lambda weight: weight * 1.5]
network.decoder.mid.block_2.conv1.weight_function = [lambda weight: weight + 0.01]
results["cast"] = differences(network, latent, image, dtype=torch.float32)

others = {}
for channels in (4, 16):
    weights = stir(comfy.taesd.taesd.TAESD(latent_channels=channels)).state_dict()
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(0.7), torch.tensor(0.1)
    tiny = comfy.sd.VAE(sd=weights, dtype=torch.float32).first_stage_model
    results[f"TAESD, {channels} channels"] = differences(tiny, torch.randn(1, channels, 9, 12), image)
if hasattr(comfy.taesd.taesd, "DecoderFlux2"):
    others["TAESD of Flux.2"] = comfy.taesd.taesd.TAESD(latent_channels=128)
others["refiner"] = with_refiners(False)
others["LTX-Video with a timestep"] = VideoVAE(config=ltx | {"timestep_conditioning": True})
others["TAEHV"] = comfy.taesd.taehv.TAEHV(latent_channels=16)
config = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
config |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
config |= {"video_kernel_size": [3, 1, 1], "alpha": 0.0}
others["SVD"] = AutoencodingEngine(
    regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
    encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": config},
    decoder_config={"target": "comfy.ldm.modules.temporal_ae.VideoDecoder", "params": config},
)
results["supported"] = [name for name, network in others.items() if seamless.supports(network)]
print(json.dumps(results))
