"""The authors' own models of four families, for `families.py`: from the enlarged picture to the result before the
colour match, as their scripts call them.

Their code needs its own versions of diffusers, transformers and peft, so it runs in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

STRENGTHS = {"pixel": 1.2, "semantic": 0.6}
TILES = {"latent_tiled_size": 96, "latent_tiled_overlap": 32}
TILES |= {"vae_decoder_tiled_size": 224, "vae_encoder_tiled_size": 1024}
PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
HYPIR_MODULES = (
    "to_k,to_q,to_v,to_out.0,conv,conv1,conv2,conv_shortcut,conv_out,proj_in,proj_out,ff.net.2,ff.net.0.proj"
)
S3DIFF_PROMPTS = {"pos_prompt": ["sharp"], "neg_prompt": ["blurred"]}
Model = Callable[[Tensor, Tensor], Tensor]  # (LR, the enlarged picture), both (1, 3, h, w) in [0, 1] -> the result


class OnTheCPU(TorchFunctionMode):
    """Put what asks for a GPU by name on the CPU: the published code knows no other device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0]
        named = {name: _cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_cpu, args), **named)


def _cpu(value: Any) -> Any:
    names_cuda = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return torch.device("cpu") if names_cuda else value


def pisa_sr(base: Path, files: Path, dtype: torch.dtype) -> Model:
    """At free strengths."""
    import pisasr  # pyright: ignore[reportMissingImports]

    strengths = {f"lambda_{name[:3]}": strength for name, strength in STRENGTHS.items()}
    places = {"pretrained_model_path": str(base), "pretrained_path": str(files / "lora.pkl")}
    options = {"mixed_precision": PRECISIONS[dtype], "default": False}
    model = pisasr.PiSASR_eval(SimpleNamespace(**options, **TILES, **strengths, **places))
    model.set_eval()
    return lambda lr, large: model(False, large * 2 - 1, prompt="")[1]


def osediff(base: Path, files: Path, dtype: torch.dtype) -> Model:
    import osediff as published  # pyright: ignore[reportMissingImports]

    places = {"pretrained_model_name_or_path": str(base), "osediff_path": str(files / "lora.pkl")}
    options = {"mixed_precision": PRECISIONS[dtype], "merge_and_unload_lora": True}
    model = published.OSEDiff_test(SimpleNamespace(**options, **TILES, **places))
    return lambda lr, large: model(large * 2 - 1, prompt="")


def hypir(base: Path, files: Path, dtype: torch.dtype) -> Model:
    """Its VAE runs in the tiles of the network."""
    from HYPIR.enhancer.sd2 import SD2Enhancer  # pyright: ignore[reportMissingImports]

    file = files / "lora.pkl"
    rank = torch.load(file)["conv_out.lora_A.default.weight"].shape[0]
    model = SD2Enhancer(str(base), str(file), HYPIR_MODULES.split(","), rank, 200, 200, "cuda")
    model.weight_dtype = dtype
    model.init_models()
    return lambda lr, large: model.enhance(large, "")


def s3diff(base: Path, files: Path, dtype: torch.dtype) -> Model:
    """With its degradation network, which sees the LR."""
    from de_net import DEResNet  # pyright: ignore[reportMissingImports]
    from s3diff_tile import S3Diff  # pyright: ignore[reportMissingImports]

    file = files / "s3diff.pkl"
    ranks = {f"lora_{name}": torch.load(file)[name] for name in ("rank_unet", "rank_vae")}
    model = S3Diff(sd_path=str(base), pretrained_path=str(file), args=SimpleNamespace(**TILES), **ranks)
    estimator = DEResNet(num_in_ch=3, num_degradation=2)
    estimator.load_model(str(files / "de_net.pth"))
    model.set_eval()
    for network in (model, estimator.eval()):
        network.to("cuda", dtype=dtype)

    def run(lr: Tensor, large: Tensor) -> Tensor:
        return model(large.to(dtype) * 2 - 1, estimator(lr.to(dtype)), **S3DIFF_PROMPTS)

    return run


# Name in the table -> how to open it, and the folder of its code in a checkout.
AUTHORS = {
    "PiSA-SR, free": (pisa_sr, "."),
    "OSEDiff": (osediff, "."),
    "HYPIR": (hypir, "."),
    "S3Diff": (s3diff, "src"),
}


def opened(name: str, checkout: Path, base: Path, files: Path, device: str, dtype: torch.dtype) -> Model:
    """Open a family's model with its authors' code. `files` has the family's own weights."""
    open_model, folder = AUTHORS[name]
    sys.path[:0] = [str(checkout), str(checkout / folder)]
    os.chdir(checkout)
    if device == "cpu":
        OnTheCPU().__enter__()
        torch.cuda.synchronize = lambda *_: None
    model = open_model(base, files, dtype)

    @torch.no_grad()
    def run(lr: Tensor, large: Tensor) -> Tensor:
        return model(lr.to(device), large.to(device)).cpu()

    return run
