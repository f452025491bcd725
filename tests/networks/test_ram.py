"""RAM: its Swin as in transformers, its tag head as torch's own attention, and the number of the published weights."""

from __future__ import annotations

import re

import small_seesr
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.networks.ram import RAM, RAMConfig
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

SMALL = small_seesr.RAM_CONFIG
THEIRS = {  # in transformers 4 and 5
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.norm": "patch_embed.norm",
    r"^encoder\.": "",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"attention\.(output\.dense|o_proj)": "attn.proj",
    r"attention\.\w+\.relative_position_bias_table": "attn.relative_position_bias_table",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
    r"^layernorm": "norm",
}


def of_transformers(ours: dict[str, Tensor], name: str) -> Tensor:
    """Our weight with the name that transformers gives it."""
    for theirs, own in THEIRS.items():
        name = re.sub(theirs, own, name)
    if match := re.search(r"attention\.(?:self\.(query|key|value)|([qkv])_proj)", name):
        whole = ours[name.replace(match[0], "attn.qkv")]
        return whole.chunk(3)["qkv".index((match[1] or match[2])[0])]
    return ours[name]


def network() -> RAM:
    ram = small_seesr.randomized(RAM(SMALL), 3).double()
    assert isinstance(ram, RAM)
    return ram


@torch.no_grad()
def test_the_swin_is_that_of_transformers() -> None:
    ram = network()
    sizes = {"depths": list(SMALL.depths), "num_heads": list(SMALL.heads), "window_size": SMALL.window}
    config = SwinConfig(image_size=SMALL.side, embed_dim=SMALL.channels, layer_norm_eps=1e-5, **sizes)
    theirs, ours = SwinModel(config).double().eval(), ram.visual_encoder.state_dict()
    weights = dict(theirs.named_parameters())
    theirs.load_state_dict({name: of_transformers(ours, name) for name in weights}, strict=False)
    picture = torch.randn(2, 3, SMALL.side, SMALL.side, dtype=torch.float64)
    found, expected = ram.visual_encoder(picture), theirs(picture)
    assert found.shape == (2, 145, SMALL.channels * 2)
    assert (found[:, 1:] - expected.last_hidden_state).abs().max() < 1e-10
    assert (found[:, 0] - expected.pooler_output).abs().max() < 1e-10


@torch.no_grad()
def test_the_tag_head_is_cross_attention_without_self_attention() -> None:
    ram, embedding = network(), torch.randn(2, 145, SMALL.embedding, dtype=torch.float64)
    x = F.relu(ram.wordvec_proj(ram.label_embed)).expand(2, -1, -1)
    for layer in ram.tagging_head["encoder"]["layer"]:
        own = dict(layer.named_parameters())
        parts = [f"crossattention.self.{part}" for part in ("query", "key", "value")]
        sizes = {"kdim": SMALL.embedding, "vdim": SMALL.embedding, "batch_first": True, "dtype": torch.float64}
        attention = nn.MultiheadAttention(SMALL.hidden, SMALL.tag_heads, **sizes)
        attention.in_proj_bias.copy_(torch.cat([own[f"{part}.bias"] for part in parts]))
        if attention.in_proj_weight is None:
            for target, part in zip(("q", "k", "v"), parts, strict=True):
                getattr(attention, f"{target}_proj_weight").copy_(own[f"{part}.weight"])
        else:
            attention.in_proj_weight.copy_(torch.cat([own[f"{part}.weight"] for part in parts]))
        attention.out_proj.weight.copy_(own["crossattention.output.dense.weight"])
        attention.out_proj.bias.copy_(own["crossattention.output.dense.bias"])
        x = layer.crossattention["output"].LayerNorm(x + attention(x, embedding, embedding)[0])
        inner = F.gelu(F.linear(x, own["intermediate.dense.weight"], own["intermediate.dense.bias"]))
        x = layer.output.LayerNorm(x + F.linear(inner, own["output.dense.weight"], own["output.dense.bias"]))
    expected = ram.fc(x).squeeze(-1).sigmoid()
    assert (ram.probabilities(embedding) - expected).abs().max() < 1e-10


def test_the_picture_is_fitted_without_antialiasing_and_normalized() -> None:
    ram, picture = network(), torch.rand(1, 3, 40, 200, dtype=torch.float64)
    fitted = F.interpolate(picture, (SMALL.side, SMALL.side), mode="bilinear", align_corners=False)
    normal = torch.stack(
        [fitted[:, 0] / 0.229 - 2.11790, fitted[:, 1] / 0.224 - 2.03571, fitted[:, 2] / 0.225 - 1.80444]
    )
    expected = ram.image_proj(ram.visual_encoder(normal.movedim(0, 1)))
    assert (ram.embed(picture) - expected).abs().max() < 1e-3 < (ram.embed(picture.flip(-1)) - expected).abs().max()


def test_the_published_network_has_212_million_weights() -> None:
    with torch.device("meta"):
        ram = RAM(RAMConfig())
    assert sum(weight.numel() for weight in ram.parameters()) == 212_117_045
    assert (ram.side, RAMConfig().tags) == (384, 4585)
