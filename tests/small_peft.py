"""Files of one-step LoRAs in the layout in which their authors publish them, random, for a small base.

The lists of modules follow the rule that the published scripts use: which part of the U-Net a name belongs to, and
which kinds of layers have a LoRA.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onestep_sr.sr_models.canvas.color import ColorMatch, match
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.commands import cli
from onestep_sr.sr_models.files.picture import Picture
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.files.write import write_picture
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

RANK = 4
SCALE = 8 / RANK  # peft's alpha is 8 where a file states none
LAYERS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj")


def with_lora(network: nn.Module) -> list[str]:
    """The modules of a network that have a LoRA."""
    names = [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(".weight")]
    return [name for name in names if "norm" not in name and any(layer in name for layer in LAYERS)]


def unet_parts(unet: nn.Module) -> dict[str, list[str]]:
    """The U-Net's modules by the part that their LoRA belongs to."""
    parts: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name in with_lora(unet):
        if "down_blocks" in name or "conv_in" in name:
            parts["encoder"].append(name)
        elif "up_blocks" in name or "conv_out" in name:
            parts["decoder"].append(name)
        else:
            parts["others"].append(name)
    return parts


def ending_with(network: nn.Module, ends: Iterable[str]) -> list[str]:
    """The modules of a network whose full names end with one of these names, which is peft's rule."""
    names = [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(".weight")]
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in ends)]


def halves(
    network: nn.Module,
    modules: Iterable[str],
    adapter: str,
    generator: torch.Generator,
    size: float = 0.1,
    rank: int = RANK,
) -> dict[str, Tensor]:
    """Random matrices of a LoRA in peft's names."""
    tensors = {}
    for module in modules:
        weight = network.get_parameter(f"{module}.weight")
        down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = size * torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator)
        tensors[f"{module}.lora_A.{adapter}.weight"], tensors[f"{module}.lora_B.{adapter}.weight"] = down, up
    return tensors


def pisa_sr(base: Path) -> dict[str, Any]:
    """The content of `pisa_sr.pkl`."""
    generator, unet = torch.Generator().manual_seed(4), UNet2DConditionModel.from_pretrained(base / "unet")
    content: dict[str, Any] = {"lora_rank_unet_pix": RANK, "lora_rank_unet_sem": RANK, "state_dict_unet": {}}
    for kind in ("pix", "sem"):
        for part, modules in unet_parts(unet).items():
            content[f"unet_lora_{part}_modules_{kind}"] = modules
            content["state_dict_unet"] |= halves(unet, modules, f"default_{part}_{kind}", generator)
    return content


def osediff(base: Path) -> dict[str, Any]:
    """The content of `osediff.pkl`."""
    generator, unet = torch.Generator().manual_seed(5), UNet2DConditionModel.from_pretrained(base / "unet")
    vae, content = AutoencoderKL.from_pretrained(base / "vae"), {"rank_unet": RANK, "rank_vae": RANK}
    in_unet: dict[str, Tensor] = {}
    for part, modules in unet_parts(unet).items():
        content[f"unet_lora_{part}_modules"] = modules
        in_unet |= halves(unet, modules, f"default_{part}", generator)
    for end in ("weight", "bias"):
        weight = unet.conv_in.get_parameter(end)
        in_unet[f"conv_in.base_layer.{end}"] = weight.data + 0.03 * torch.randn(weight.shape, generator=generator)
    encoder = [name for name in with_lora(vae) if "encoder" in name or name == "quant_conv"]
    content |= {"vae_lora_encoder_modules": [*encoder, "quant_conv"], "state_dict_unet": in_unet}
    return content | {"state_dict_vae": halves(vae, encoder, "default_encoder", generator)}


HYPIR_RANK = 16
HYPIR_LAYERS = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
)


def hypir(base: Path) -> dict[str, Tensor]:
    """The content of `HYPIR_sd2.pth`."""
    generator, unet = torch.Generator().manual_seed(6), UNet2DConditionModel.from_pretrained(base / "unet")
    return halves(unet, ending_with(unet, HYPIR_LAYERS), "default", generator, size=0.05, rank=HYPIR_RANK)


OMGSR_RANKS = {"unet": 32, "vae": 16}
OMGSR_LAYERS = (*HYPIR_LAYERS[:9], "conv_in")


def omgsr(base: Path) -> dict[str, dict[str, Tensor]]:
    """OMGSR-S's LoRAs by part, the VAE's in the encoder's own names, both without adapter names."""
    generator, unet = torch.Generator().manual_seed(7), UNet2DConditionModel.from_pretrained(base / "unet")
    encoder = AutoencoderKL.from_pretrained(base / "vae").encoder
    found = {}
    for part, network in (("unet", unet), ("vae", encoder)):
        modules = ending_with(network, OMGSR_LAYERS)
        tensors = halves(network, modules, "x", generator, size=0.03, rank=OMGSR_RANKS[part])
        found[part] = {name.replace(".x.weight", ".weight"): tensor for name, tensor in tensors.items()}
    return found


def write_omgsr(folder: Path, content: dict[str, dict[str, Tensor]]) -> Path:
    """The published folder: one of peft's per part."""
    for part, name in (("unet", "unet_lora_adapter"), ("vae", "vae_encoder_lora_adapter")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        tensors = {f"base_model.model.{key}": tensor for key, tensor in content[part].items()}
        save_file(tensors, folder / name / "adapter_model.safetensors")
        config = {"r": OMGSR_RANKS[part], "lora_alpha": OMGSR_RANKS[part], "peft_type": "LORA"}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return folder


def without_lists(content: dict[str, Any], table: str, module: str) -> None:
    """Remove a file's lists of modules, and from one of its tables a module's matrices."""
    for key in [key for key in content if key.endswith("_modules") or "_modules_" in key]:
        del content[key]
    for key in [key for key in content[table] if key.startswith(f"{module}.lora_")]:
        del content[table][key]


def without(file: Path, lacking: str, part: Path) -> None:
    """Write a part of a safetensors file, without the names that begin so."""
    with safe_open(file, "pt") as whole:
        tensors = {name: whole.get_tensor(name) for name in whole.keys() if not name.startswith(lacking)}  # noqa: SIM118
        save_file(tensors, part, metadata=whole.metadata())


S3DIFF_RANKS = {"unet": 8, "vae": 4}
S3DIFF_LAYERS = {"unet": HYPIR_LAYERS, "vae": OMGSR_LAYERS}


def s3diff(base: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of `s3diff.pkl` and of `de_net.pth`. The modulating networks have their published sizes."""
    generator = torch.Generator().manual_seed(9)
    networks = {"unet": UNet2DConditionModel.from_pretrained(base / "unet")}
    networks["vae"] = AutoencoderKL.from_pretrained(base / "vae")
    content: dict[str, Any] = {"w": nn.Parameter(torch.randn(64, generator=generator), requires_grad=False)}
    content["state_embeddings"] = {}
    for part, network in networks.items():
        rank, adapter = S3DIFF_RANKS[part], {"unet": "default", "vae": "vae_skip"}[part]
        modules = ending_with(network, S3DIFF_LAYERS[part])
        modules = [name for name in modules if part == "unet" or name.startswith("encoder.")]
        content |= {f"rank_{part}": rank, f"{part}_lora_target_modules": list(S3DIFF_LAYERS[part])}
        content[f"state_dict_{part}"] = halves(network, modules, adapter, generator, rank=rank)
        sizes = {"de_mlp/0": (256, 256), "block_mlp/0": (64, 64), "fuse_mlp": (320, rank**2)}
        for name, (inputs, outputs) in sizes.items():
            table, _, prefix = name.partition("/")
            prefix = f"{prefix}." if prefix else ""
            content[f"state_dict_{part}_{table}"] = {
                f"{prefix}weight": torch.randn(outputs, inputs, generator=generator) / inputs**0.5,
                f"{prefix}bias": 0.2 * torch.randn(outputs, generator=generator),
            }
        rows = {"unet": 10, "vae": 6}[part]
        content["state_embeddings"][f"state_dict_{part}_block"] = {"weight": torch.randn(rows, 64, generator=generator)}
    for end in ("weight", "bias"):
        weight = networks["unet"].conv_in.get_parameter(end)
        content["state_dict_unet"][f"conv_in.{end}"] = weight.data + 0.03 * torch.randn(
            weight.shape, generator=generator
        )
    return content, degradation_network(generator)


def degradation_network(generator: torch.Generator) -> dict[str, Tensor]:
    """`de_net.pth` in its published shapes: 1,418,114 weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for score in range(2):
        shapes[f"conv_first.{score}"] = (64, 3, 3, 3)
        shapes |= {f"body.{score}.{block}.conv{half}": (64, 64, 3, 3) for block in range(6) for half in (1, 2)}
        shapes |= {f"body.{score}.6": (128, 64, 3, 3)}
        shapes |= {f"body.{score}.{block}.conv{half}": (128, 128, 3, 3) for block in (7, 8) for half in (1, 2)}
        shapes |= {f"fc_degree.{score}.0": (512, 128), f"fc_degree.{score}.2": (1, 512)}
    tensors = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        tensors |= {f"{name}.weight": weight / weight[0].numel() ** 0.5, f"{name}.bias": torch.zeros(shape[0])}
    return tensors


def write_s3diff(folder: Path, content: dict[str, Any], estimator: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "s3diff.pkl")
    torch.save(estimator, folder / "de_net.pth")
    return folder / "s3diff.pkl"


def write_gdpo(base: Path, folder: Path) -> Path:
    """GDPO-SR's published folder: a U-Net and a VAE that differ from the base's."""
    generator = torch.Generator().manual_seed(8)
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        network = kind.from_pretrained(base / part)
        for weight in network.parameters():
            weight.data *= 1 + 0.05 * torch.randn(weight.shape, generator=generator)
        network.save_pretrained(folder / part)
    return folder


def add_lora(network: nn.Module, tensors: dict[str, Tensor], ending: str, scale: float) -> None:
    """W + scale B A in the network's precision, for adapters whose names have this ending."""
    for name in (key for key in tensors if ".lora_A." in key and key.endswith(f"{ending}.weight")):
        down, up = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        weight = network.get_parameter(f"{name.split('.lora_A.')[0]}.weight")
        change = torch.einsum("or,ri->oi", up.flatten(1).to(weight), down.flatten(1).to(weight))
        weight.data += scale * change.view(weight.shape)


def opened(base: Path) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """A folder's U-Net and VAE in float64."""
    unet, vae = (
        kind.from_pretrained(base / part).double()
        for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    return unet.requires_grad_(False), vae.requires_grad_(False)


def smooth_image() -> Tensor:
    """A picture of 48 x 32 px with 16 bits per channel. It is smooth, as colour matches compare means and
    deviations."""
    noise = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return (resize(noise, (32, 48)).clamp(0, 1) * (2**16 - 1)).round() / (2**16 - 1)


def roots(timestep: int) -> tuple[Tensor, Tensor]:
    """The weights of picture and noise of Stable Diffusion 2 at a timestep, in float64."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    return alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()


IN_TILES = {"tile": 32, "overlap": 16}  # 32 x 48 px are 4 x 6 latent pixels: two tiles of 4 x 4


def blended(predicted: Callable[[Tensor], Tensor], z_t: Tensor) -> Tensor:
    """The prediction of two tiles of `IN_TILES`. On the two columns that they share, the weight goes from one to the
    other as 3 s^2 - 2 s^3, which is 5/32 and 27/32 at s = 1/4 and 3/4."""
    weight = torch.tensor([1, 1, 27 / 32, 5 / 32], dtype=z_t.dtype)
    e = torch.zeros_like(z_t)
    e[..., :4] += weight * predicted(z_t[..., :4])
    e[..., 2:] += weight.flip(0) * predicted(z_t[..., 2:])
    return e


@torch.no_grad()
def one_step(
    networks: tuple[UNet2DConditionModel, AutoencoderKL],
    condition: Tensor,
    image: Tensor,
    timestep: int,
    color: ColorMatch,
    start: Callable[[Tensor], Tensor] = lambda z: z,
    *,
    tiled: bool = False,
) -> Tensor:
    """z_0 = (z_t - sigma e) / alpha with z_t = start(.18215 E(x)), then D(z_0 / .18215) with the input's colours, in
    float64. `tiled`: e is that of two tiles, as in `IN_TILES`."""
    unet, vae = networks
    alpha, sigma = roots(timestep)
    z_t = start(0.18215 * vae.encode(image.double() * 2 - 1).latent_dist.mode())

    def predicted(part: Tensor) -> Tensor:
        return unet(part, timestep, encoder_hidden_states=condition.double()).sample

    e = blended(predicted, z_t) if tiled else predicted(z_t)
    result = (vae.decode((z_t - sigma * e) / alpha / 0.18215).sample / 2 + 0.5).clamp(0, 1).float()
    return match(result, image, color).clamp(0, 1)


@torch.no_grad()
def encoded(base: Path, prompt: str) -> Tensor:
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokens = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return CLIPTextModel.from_pretrained(base / "text_encoder")(tokens).last_hidden_state


def on_the_command_line(image: Tensor, folder: Path, *options: object, scale: int = 1) -> Tensor:
    """The result of `onestep-sr upscale`, in this process and with 16 bits per channel."""
    write_picture(folder / "in.png", Picture(image[0], bits=16))
    upscale_files(folder / "in.png", folder / "out.png", "--overwrite", *options, scale=scale)
    return read_picture(folder / "out.png").pixels[None]


def upscale_files(source: Path, output: Path, *options: object, scale: int = 1) -> None:
    """Runs `onestep-sr upscale` in float32, in this process."""
    command = ["onestep-sr", "upscale", source, "-o", output, "--scale", scale, "--dtype", "fp32", "--device", "cpu"]
    before, sys.argv = sys.argv, [str(part) for part in (*command, *options)]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code
    finally:
        sys.argv = before


def calm_output(base: Path) -> None:
    """Make the U-Net's output small: at t = 999 it is divided by .068, and a trained one keeps the result in range."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    unet.conv_out.weight.data *= 0.05
    unet.save_pretrained(base / "unet")


def osediff_networks(
    base: Path, content: dict[str, Any], scale: float = SCALE, left_out: str = ""
) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """OSEDiff on a base in float64. `left_out`: "VAE", "conv_in replaced", or the beginning of LoRA names."""
    unet, vae = opened(base)
    in_unet, in_vae = dict(content["state_dict_unet"]), dict(content["state_dict_vae"])
    if left_out != "conv_in replaced":
        for end in ("weight", "bias"):
            unet.conv_in.get_parameter(end).data = in_unet[f"conv_in.base_layer.{end}"].double()
    for tensors in (in_unet, in_vae):
        for name in [name for name in tensors if left_out and name.startswith(left_out)]:
            del tensors[name]
    add_lora(unet, in_unet, "", scale)
    if left_out != "VAE":
        add_lora(vae, in_vae, "", scale)
    return unet, vae


def merged(base: Path, content: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """OSEDiff's second layout: both networks, with the LoRA merged in float64."""
    unet, vae = osediff_networks(base, content)
    return {"vae": vae.float().state_dict(), "unet": unet.float().state_dict()}


def saved(content: Callable[[Path], Any]) -> Callable[[Path, Path], Path]:
    """Writes the content for a base into a folder, as one file."""

    def write(base: Path, folder: Path) -> Path:
        torch.save(content(base), folder / "lora.pkl")
        return folder / "lora.pkl"

    return write


# By family: the base's folder and a new one for the files -> the file or folder to open.
WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "PiSA-SR": saved(pisa_sr),
    "OSEDiff": saved(osediff),
    "HYPIR": saved(hypir),
    "OMGSR-S": lambda base, folder: write_omgsr(folder, omgsr(base)),
    "S3Diff": lambda base, folder: write_s3diff(folder, *s3diff(base)),
    "GDPO-SR": write_gdpo,
}
