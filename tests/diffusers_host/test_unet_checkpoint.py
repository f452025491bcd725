"""Stable Diffusion 2.1 as one file in Stability's format gives what the diffusers folder of the same weights gives."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import small_peft
import small_sd3
import small_unet
import torch
from diffusers import UNet2DConditionModel
from onestep_sr.sr_models.diffusers_host import unet
from onestep_sr.sr_models.diffusers_host.lora import open_lora
from onestep_sr.sr_models.diffusers_host.unet_checkpoint import END, PADDING, START
from onestep_sr.sr_models.diffusers_host.unet_files import is_unet
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bases import SD21
from onestep_sr.sr_models.families.registry import read_lora
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS, LAYERS, WIDTH = (64, 128), 1, 64
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
OUTSIDE |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
TEXT = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
TEXT |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def original_unet_name(name: str) -> str:
    """Stability's name of a U-Net's parameter, of two levels with attention in the finer one."""
    if match := re.match(r"(down|up|mid)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.+)", name):
        half, block, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        first = {"down": 1 + block * (LAYERS + 1), "up": block * (LAYERS + 1), "mid": 0}[half]
        place = {"down": "input_blocks", "up": "output_blocks", "mid": "middle_block"}[half]
        if kind == "downsamplers":
            return f"input_blocks.{first + LAYERS}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + LAYERS}.1.{rest}"
        if kind == "attentions":
            return "middle_block.1." + rest if half == "mid" else f"{place}.{first + number}.1.{rest}"
        layer, _, end = rest.rpartition(".")
        inside = f"{RESNET[layer]}.{end}"
        return f"{place}.{2 * number}.{inside}" if half == "mid" else f"{place}.{first + number}.0.{inside}"
    layer, _, end = name.rpartition(".")
    return f"{OUTSIDE[layer]}.{end}"


def original_text_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, which have one more layer and a projection."""
    result = {"text_projection": torch.zeros(WIDTH, WIDTH), "logit_scale": torch.ones(())}
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    result["positional_embedding"] = state["embeddings.position_embedding.weight"]
    result["token_embedding.weight"] = state["embeddings.token_embedding.weight"]
    for end in ("weight", "bias"):
        result[f"ln_final.{end}"] = state[f"final_layer_norm.{end}"]
        for number in range(2):
            here, there = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
            parts = [state[f"{here}.self_attn.{half}_proj.{end}"] for half in "qkv"]
            result[f"{there}.attn.in_proj_{end}"] = torch.cat(parts)
            result |= {f"{there}.{new}.{end}": state[f"{here}.{old}.{end}"] for old, new in TEXT.items()}
    last = {name.replace("resblocks.1", "resblocks.2"): t for name, t in result.items() if "resblocks.1" in name}
    return result | {name: torch.zeros_like(tensor) for name, tensor in last.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, generator = tmp_path_factory.mktemp("single"), torch.Generator().manual_seed(0)
    base = small_unet.write(root / "base", "2.1-base")
    network = UNet2DConditionModel(
        block_out_channels=WIDTHS,
        layers_per_block=LAYERS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=1024,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
    )
    small_sd3.fill(network, generator)
    for name, weight in network.named_parameters():
        if name.endswith("transformer_blocks.0.norm1.bias"):
            weight.data *= 0.05 / weight.std()
    network.save_pretrained(base / "unet")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = CLIPTextConfig(vocab_size=END + 1, hidden_act="gelu", **sizes)
    CLIPTextModel(config).save_pretrained(base / "text_encoder")
    return base


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    parts = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")}
    named = {f"model.diffusion_model.{original_unet_name(name)}": t for name, t in parts["unet"].items()}
    named |= {f"first_stage_model.{name}": t for name, t in small_sd3.original_vae(parts["vae"]).items()}
    named |= {f"cond_stage_model.model.{n}": t for n, t in original_text_encoder(parts["text_encoder"]).items()}
    return {name: tensor.contiguous() for name, tensor in named.items()}


@pytest.fixture(scope="module")
def file(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder.parent / "v2-1_512.safetensors")
    return folder.parent / "v2-1_512.safetensors"


def test_the_networks_are_those_of_the_folder(folder, file) -> None:
    assert is_unet(file) and is_unet(folder)
    single, whole = unet.open_base(file, torch.float32), unet.open_base(folder, torch.float32)
    assert single.kind == whole.kind and (single.kind.title, single.kind.prediction) == (SD21.title, "epsilon")
    latent, generator = torch.randn(1, 4, 8, 8), torch.Generator().manual_seed(1)
    prompt = torch.randn(1, 77, 1024, generator=generator)
    for one, other in ((single.network, whole.network), (single.vae, whole.vae)):
        expected = other.state_dict()
        assert one.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in one.state_dict().items())
    t, none = torch.tensor([100]), torch.zeros(1, 0)
    first, second = (each.call(each.network, latent, t, prompt, none) for each in (single, whole))
    assert torch.equal(first, second)
    assert single.vae.config.scaling_factor == 0.18215
    for table in ("alpha", "sigma", "timesteps"):
        assert (getattr(single.process, table) - getattr(whole.process, table)).abs().max() < 1e-6


def test_v_prediction_is_noticed(tensors, tmp_path) -> None:
    """Stability's v model has the same names and shapes; only its values tell."""
    path = tmp_path / "v2-1_768.safetensors"
    bias = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"
    save_file(tensors | {bias: 4 * tensors[bias]}, path)
    assert str(unet.open_base(path, torch.float32).kind) == "Stable Diffusion 2.1 with v prediction"


def test_the_empty_text_needs_no_vocabulary(folder, file) -> None:
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    assert isinstance(encoder, CLIPTextModel)
    encode = unet.open_text_encoders(file, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        expected = encoder(torch.tensor([[START, END, *(PADDING,) * 75]])).last_hidden_state
    assert (encode("").prompt - expected).abs().max() < 1e-5 and encode("").pooled.shape == (1, 0)


def test_another_text_needs_a_vocabulary(folder, file, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    encode = unet.open_text_encoders(file, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(
        UserError, match="has no vocabulary to read the prompt 'a lake' with: copy the folder tokenizer"
    ):
        encode("a lake")
    (file.parent / "tokenizer").symlink_to(folder / "tokenizer", target_is_directory=True)
    encoded = encode("a lake").prompt
    assert encoded.shape == (1, 77, WIDTH) and (encoded - encode("").prompt).abs().max() > 1e-3


@pytest.mark.parametrize("texts", [{"tagger": Path("ram")}, {"captions": True}], ids=["tagger", "captions"])
def test_texts_of_pictures_need_a_vocabulary_before_anything_is_read(
    folder, file, monkeypatch, texts, tmp_path
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    alone = tmp_path / file.name
    alone.symlink_to(file)
    torch.save(small_peft.osediff(folder), tmp_path / "osediff.pkl")
    lora = replace(read_lora(tmp_path / "osediff.pkl"), **texts)
    monkeypatch.setattr(unet, "open_text_encoders", None)
    monkeypatch.setattr(unet, "open_base", None)
    words = "v2-1_512.safetensors has no vocabulary to read tags or captions with: copy the folder tokenizer"
    with pytest.raises(UserError, match=words):
        open_lora(alone, lora, dtype=torch.float32)


BROKEN = {
    "no text encoder": ("cond_stage_model.", "is not a checkpoint of Stable Diffusion 2.1 with its text encoder"),
    "no VAE": ("first_stage_model.", "is not a complete Stable Diffusion 2.1 checkpoint"),
    "part of the U-Net": ("model.diffusion_model.out.2.bias", "is not a complete .* checkpoint .*conv_out.bias"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_lacks_a_part_is_refused(tensors, tmp_path, kind) -> None:
    prefix, words = BROKEN[kind]
    save_file({name: t for name, t in tensors.items() if not name.startswith(prefix)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=words):
        unet.open_base(tmp_path / "part.safetensors", torch.float32)
