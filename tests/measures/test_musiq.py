"""MUSIQ's parts against torch's own and against loops in numpy; its file's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures import musiq
from torch import Tensor, nn


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> musiq.Musiq:
    torch.manual_seed(0)
    made = musiq.Musiq().requires_grad_(False).eval()
    encoder = made.transformer_encoder
    for table in (encoder.posembed_input["position_emb"], encoder.scaleembed_input["scale_emb"], encoder.cls):
        nn.init.normal_(table)
    return made


def test_a_block_equals_torchs_own_layer() -> None:
    torch.manual_seed(0)
    ours = musiq.Block().double()
    theirs = nn.TransformerEncoderLayer(
        musiq.WIDTH, musiq.HEADS, musiq.HIDDEN, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    ).double()
    attention = ours.attention
    queries = (attention.query, attention.key, attention.value)
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([each.weight for each in queries]),
            "self_attn.in_proj_bias": torch.cat([each.bias for each in queries]),
            **{f"self_attn.out_proj.{key}": value for key, value in attention.out.state_dict().items()},
            **{f"linear{n}.{key}": value for n in (1, 2) for key, value in ours.mlp[f"fc{n}"].state_dict().items()},
            **{
                f"norm{n}.{key}": value for n in (1, 2) for key, value in getattr(ours, f"norm{n}").state_dict().items()
            },
        }
    )
    x = noise(2, 5, musiq.WIDTH).double()
    assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-12)


def test_a_standardized_convolution_equals_loops() -> None:
    torch.manual_seed(0)
    convolution, x = musiq.StandardizedConv(2, 3, 7, 2).double(), noise(1, 2, 9, 8).double()
    weight = convolution.weight.detach().numpy()
    weight = weight - weight.mean((1, 2, 3), keepdims=True)
    weight = weight / (weight.std((1, 2, 3), keepdims=True, ddof=1) + 1e-5)
    padded = np.pad(x[0].numpy(), ((0, 0), (3, 3), (2, 3)))  # 9 rows lack 6, 8 columns 5
    expected = np.array(
        [
            [[(padded[:, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7] * k).sum() for j in range(4)] for i in range(5)]
            for k in weight
        ]
    )
    assert np.allclose(convolution(x)[0].detach().numpy(), expected, rtol=1e-10)


def test_patches_find_their_places_in_the_table(model) -> None:
    _, places = model._tokens(noise(1, 3, 70, 97))
    assert places.tolist() == [10 * (i * 10 // 3) + j * 10 // 4 for i in range(3) for j in range(4)]


def test_a_batch_gets_what_its_pictures_get_and_pictures_differ(model) -> None:
    pictures = noise(2, 3, 100, 150)
    both = model(pictures)
    assert torch.allclose(both, torch.cat([model(each[None]) for each in pictures]), rtol=1e-4)
    assert both.shape == (2,) and both[0] != both[1]
    assert (model(pictures.flip(-1)) - both).abs().min() > 0


def test_the_published_files_names_are_read_and_others_refused(model, tmp_path: Path, monkeypatch) -> None:
    names = set(model.state_dict())
    assert sum(weight.numel() for weight in model.parameters()) == 27_125_825
    assert {
        "conv_root.weight",
        "gn_root.bias",
        "block1.conv_proj.weight",
        "block1.gn_proj.weight",
        "embedding.weight",
        "transformer_encoder.posembed_input.position_emb",
        "transformer_encoder.scaleembed_input.scale_emb",
        "transformer_encoder.cls",
        "transformer_encoder.transformer.encoderblock_13.attention.query.bias",
        "transformer_encoder.transformer.encoderblock_0.mlp.fc2.weight",
        "transformer_encoder.encoder_norm.weight",
        "head.weight",
    } <= names
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert musiq.find_musiq(None) is None
    file = tmp_path / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"
    file.parent.mkdir()
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, file)
    found = musiq.find_musiq(None)
    assert found is not None and torch.equal(found(noise(1, 3, 40, 40)), model(noise(1, 3, 40, 40)))
    torch.save({"head.weight": torch.zeros(1, 384)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not contain the weights of MUSIQ"):
        musiq.find_musiq(tmp_path / "other.pth")
