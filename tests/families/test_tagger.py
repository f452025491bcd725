"""The tagger's files: what is read, DAPE's LoRA, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_seesr
import torch
import torch.nn.functional as F
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.tagger import LORA_FILE, RAM_FILE, TAGS_FILE, THRESHOLDS_FILE, read_tagger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_seesr.write_ram(tmp_path / "ram")
    return tmp_path / "ram"


@pytest.mark.parametrize("file", ["", RAM_FILE])
def test_the_folder_and_the_file_give_the_same_sizes_and_weights(folder, file) -> None:
    tagger = read_tagger(folder / file)
    weights = torch.load(folder / RAM_FILE)["model"]
    found = dict(tagger.network.named_parameters())
    assert tagger.network.side == small_seesr.RAM_CONFIG.side
    changed = {name for name in found if not torch.equal(found[name], weights[name])}
    expected = {name for name in found if name.endswith((".qkv.weight", "self.query.weight", "self.key.weight"))}
    assert changed == expected


def test_dapes_lora_is_on_queries_and_values_of_the_swin_and_queries_and_keys_of_the_head(folder) -> None:
    """W + B A / r with alpha 1; a projection of three parts has one A and B for its queries and one for its values."""
    found = dict(read_tagger(folder).network.named_parameters())
    weights, lora = torch.load(folder / RAM_FILE)["model"], torch.load(folder / LORA_FILE)
    name = "visual_encoder.layers.0.blocks.1.attn.qkv"
    down, up, width = lora[f"{name}.lora_A"], lora[f"{name}.lora_B"], small_seesr.RAM_CONFIG.channels
    query, key, value = (found[f"{name}.weight"] - weights[f"{name}.weight"]).split(width)
    assert torch.allclose(query, up[:width] @ down[:8] / 8, atol=1e-6) and not key.any()
    assert torch.allclose(value, up[width:] @ down[8:] / 8, atol=1e-6)
    name = "tagging_head.encoder.layer.1.crossattention.self.key"
    change = found[f"{name}.weight"] - weights[f"{name}.weight"]
    assert torch.allclose(change, lora[f"{name}.lora_B"] @ lora[f"{name}.lora_A"] / 8, atol=1e-6)


def test_tags_are_those_over_their_thresholds(folder) -> None:
    picture = torch.rand(1, 3, 30, 50, generator=torch.Generator().manual_seed(1))
    tagger = read_tagger(folder)
    embedding = tagger.embedding(picture)
    chances = tagger.network.probabilities(embedding)[0]
    assert torch.equal(tagger.thresholds, torch.full((small_seesr.TAGS,), 0.68))
    over = [f"tag {number}" for number in range(small_seesr.TAGS) if chances[number] > 0.68]
    assert tagger.tags(embedding) == [", ".join(over)]
    wanted = {1, 5}
    lines = [f"{chance + (-0.01 if number in wanted else 0.01):.6f}" for number, chance in enumerate(chances)]
    (folder / THRESHOLDS_FILE).write_text("\n".join(lines) + "\n")
    assert read_tagger(folder).tags(embedding) == ["tag 1, tag 5"]


def test_a_second_look_resizes_bicubically(folder) -> None:
    picture, tagger = torch.rand(1, 3, 30, 50, generator=torch.Generator().manual_seed(1)), read_tagger(folder)
    resized = F.interpolate(picture, (tagger.network.side,) * 2, mode="bicubic")
    found = tagger.second_look(picture)
    assert torch.allclose(found, tagger.embedding(resized), atol=1e-6)
    assert (found - tagger.embedding(picture)).abs().max() > 1e-3


def test_without_names_there_is_an_embedding_and_no_tags(folder) -> None:
    (folder / TAGS_FILE).unlink()
    tagger = read_tagger(folder)
    embedding = tagger.embedding(torch.rand(1, 3, 20, 20))
    with pytest.raises(UserError, match=r"have no names without ram_tag_list\.txt: copy it from SeeSR's repository"):
        tagger.tags(embedding)


def test_the_earlier_name_of_the_tag_head_is_known(folder) -> None:
    weights = torch.load(folder / RAM_FILE)["model"]
    expected = read_tagger(folder).network.state_dict()
    renamed = {name.replace("tagging_head.", "vision_multi."): tensor for name, tensor in weights.items()}
    torch.save({"model": renamed}, folder / RAM_FILE)
    found = read_tagger(folder).network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_lora_is_named(folder) -> None:
    (folder / LORA_FILE).unlink()
    with pytest.raises(UserError, match=r"RAM needs DAPE\.pth, which is not next to ram_swin_large_14m\.pth: copy it"):
        read_tagger(folder)


BROKEN = {
    "not RAM": (RAM_FILE, {"x": torch.zeros(2)}, r"is not RAM with a Swin \(it lacks .*: choose ram_swin_large_14m"),
    "not DAPE": (LORA_FILE, {"x": torch.zeros(2)}, r"DAPE\.pth is not DAPE's \(it lacks .*lora_A"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_other_files_are_refused(folder, what) -> None:
    file, content, words = BROKEN[what]
    torch.save(content, folder / file)
    with pytest.raises(UserError, match=words):
        read_tagger(folder)


def test_an_incomplete_file_is_refused(folder) -> None:
    weights = torch.load(folder / RAM_FILE)["model"]
    del weights["fc.bias"]
    torch.save({"model": weights}, folder / RAM_FILE)
    with pytest.raises(UserError, match=r"lacks 1 weights \(fc\.bias\)"):
        read_tagger(folder)


def test_a_lora_of_other_shapes_is_refused(folder) -> None:
    lora = torch.load(folder / LORA_FILE)
    name = next(name for name in lora if name.endswith("query.lora_A"))
    lora[name] = lora[name][:, :-1]
    torch.save(lora, folder / LORA_FILE)
    with pytest.raises(UserError, match=r"DAPE\.pth does not fit RAM's file \(at tagging_head"):
        read_tagger(folder)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (TAGS_FILE, "one\ntwo", r"has 2 lines, but RAM has 12 tags"),
        (THRESHOLDS_FILE, "high\n" * 12, "has a line that is not a number"),
    ],
    ids=["tags", "thresholds"],
)
def test_lists_of_another_file_are_refused(folder, file, text, words) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=words):
        read_tagger(folder)
