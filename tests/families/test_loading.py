"""Weights files: what loads, what it becomes, and one sentence for each that does not.

The published networks are saved at full size here with every tensor a view of one number: torch files
keep the number only, so 118 million parameters make a file of 4 MB.
"""

import os
import pickle
import re
import tempfile
from pathlib import Path

import pytest
import torch
from full_size import on_meta, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.checkpoints.header import header_of
from onestep_sr.sr_models.checkpoints.weights_file import mismatches, read_weights
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import resshift
from onestep_sr.sr_models.families.catalogue import describe
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.networks.swin_unet import SwinUNet
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder
from safetensors.torch import save_file

RECIPES = {
    "TAD-SR.pth": "tad-sr",
    "SinSR_v1.pth": "sinsr",
    "SinSR_v2.pth": "sinsr",
    "resshift_realsrx4_s15_v1.pth": "resshift",
    "resshift_realsrx4_s15_v2.pth": "resshift",
    "resshift_realsrx4_s4_v3.pth": "resshift-s4",
    "resshift_bicsrx4_s4.pth": "resshift-s4",
}
STEPS = {"tad-sr": (15, 1), "sinsr": (15, 1), "resshift": (15, 15), "resshift-s4": (4, 4)}


@pytest.fixture(scope="module")
def unet_weights():
    return weights_of(SwinUNet)


@pytest.fixture(scope="module")
def vq_weights():
    return weights_of(VQAutoencoder)


@pytest.fixture(scope="module")
def published(tmp_path_factory, unet_weights, vq_weights) -> Path:
    """A folder with the two files that a user of TAD-SR has."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(unet_weights, folder / "TAD-SR.pth")
    torch.save(vq_weights, folder / "autoencoder_vq_f4.pth")
    return folder


def refusal(path: Path, named: str | None = None, **options) -> str:
    """The sentence with which `load` refuses a file: one line that names the file and says what to do."""
    with pytest.raises(UserError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]+: (download|choose|check|copy|get)[^\n]+\.", message), message
    assert ". " not in message
    assert (named or path.name) in message
    return message


# Published files


def test_a_published_file_loads_with_its_autoencoder(published):
    loaded = load(published / "TAD-SR.pth", dtype=torch.float16, budget=2**30)
    unet, vq = loaded.modules
    assert loaded.model.codec.budget == 2**30
    assert sum(p.numel() for p in unet.parameters()) == 118_593_583
    assert sum(p.numel() for p in vq.parameters()) == 55_322_782
    assert {p.dtype for module in loaded.modules for p in module.parameters()} == {torch.float16}
    assert not any(p.requires_grad or p.is_meta for module in loaded.modules for p in module.parameters())
    assert not unet.training
    assert unet.config.published_mask
    model = loaded.model
    assert (model.codec.factor, model.codec.latent_channels) == (4, 3)
    recipe = model.recipe
    assert (recipe.name, recipe.scale, recipe.tile, recipe.multiple) == ("tad-sr", 4, 512, 64)


def test_every_weight_gets_its_own_values_in_the_asked_precision(published, vq_weights):
    autoencoder = resshift.load_autoencoder(read_weights(published / "autoencoder_vq_f4.pth"), torch.float32)
    for name, parameter in autoencoder.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.flatten()[-1].item() == vq_weights[name].flatten()[0].item()


def test_weights_are_used_in_place_without_a_copy(published):
    for name, part in (("TAD-SR.pth", resshift.load_network), ("autoencoder_vq_f4.pth", resshift.load_autoencoder)):
        file = read_weights(published / name)
        for key, parameter in part(file, torch.float16).named_parameters():
            assert parameter.data_ptr() == file.tensors[key].data_ptr()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "params_ema", "params", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_dropped(tmp_path, unet_weights, wrapper, prefix):
    table = {prefix + name: tensor for name, tensor in unet_weights.items()}
    path = tmp_path / "TAD-SR.pth"
    torch.save(table if wrapper is None else {wrapper: table, "epoch": 3}, path)
    file = read_weights(path)
    assert file.tensors.keys() == unet_weights.keys()
    assert not resshift.NETWORK.missing(header_of(file))
    assert mismatches(file, on_meta(SwinUNet)) == []


def test_a_model_for_inpainting_is_named_for_what_it_is(tmp_path, unet_weights):
    """Its network is the same but for its width at the entrance, behind convolutions for the picture and its mask."""
    stack = {"feature_extractor.0.weight": torch.zeros(16, 4, 3, 3)}
    torch.save(unet_weights | stack, tmp_path / "resshift_inpainting_face_s4.pth")
    assert "is a ResShift model for inpainting, which is not an upscaler" in refusal(
        tmp_path / "resshift_inpainting_face_s4.pth"
    )


def test_buffers_may_be_absent(tmp_path, unet_weights):
    learned = {name for name, _ in on_meta(SwinUNet).named_parameters()}
    assert learned < unet_weights.keys()
    path = tmp_path / "TAD-SR.pth"
    torch.save({name: unet_weights[name] for name in learned}, path)
    network = resshift.load_network(read_weights(path), torch.float16)
    index = network.middle_block[1].blocks[0].attn.relative_position_index
    assert index[0, 0] == 7 * 15 + 7  # a pixel and itself: the middle of the table


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items())
def test_the_published_name_selects_the_recipe(name, recipe):
    assert resshift.recipe_for(name).name == recipe
    step = resshift.recipe_for(name).step
    assert (step.schedule.steps, step.evaluations) == STEPS[recipe]


def test_the_recipe_follows_the_file_name_and_a_choice_overrides_it(published, tmp_path):
    renamed = tmp_path / "resshift_realsrx4_s4_v3.pth"
    renamed.symlink_to(published / "TAD-SR.pth")
    assert describe(renamed) == "ResShift, 4 steps, x4"
    beside = {"autoencoder": published / "autoencoder_vq_f4.pth", "dtype": torch.float16}
    chosen = load(renamed, recipe="resshift", **beside).model.recipe
    assert (chosen.name, chosen.step.evaluations) == ("resshift", 15)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, "fp16", None], ids=str)
def test_a_dtype_that_is_not_possible_is_refused_with_those_that_are(dtype) -> None:
    with pytest.raises(UserError) as caught:
        load(dtype=dtype)
    assert str(caught.value) == f"dtype {dtype!r} is not possible: choose torch.float32, torch.float16, torch.bfloat16."


def test_the_bundled_model_takes_no_autoencoder_and_no_recipe() -> None:
    with pytest.raises(UserError, match=r"^One-Step SR network models need no autoencoder: leave 'vae\.pth' out\.$"):
        load(autoencoder=Path("vae.pth"))
    with pytest.raises(UserError, match=r"^One-Step SR network models bring a recipe of their own: leave 'tad-sr' out"):
        load(recipe="tad-sr")


def test_an_unknown_recipe_is_refused_with_the_known_ones(published):
    with pytest.raises(UserError) as caught:
        load(published / "TAD-SR.pth", recipe="magic")
    expected = (
        "Recipe 'magic' is unknown for TAD-SR, SinSR or ResShift x4: "
        "choose one of tad-sr, sinsr, resshift, resshift-s4, resshift-ddim, resshift-s4-ddim."
    )
    assert str(caught.value) == expected


def test_a_published_file_without_its_autoencoder_says_where_it_belongs(tmp_path, unet_weights):
    path = tmp_path / "SinSR_v2.pth"
    torch.save(unet_weights, path)
    message = refusal(path)
    assert str(tmp_path / "autoencoder_vq_f4.pth") in message
    assert str(tmp_path / "elsewhere.pth") in refusal(path, autoencoder=tmp_path / "elsewhere.pth")


def test_model_and_autoencoder_the_wrong_way_round(published):
    model, autoencoder = published / "TAD-SR.pth", published / "autoencoder_vq_f4.pth"
    assert "is the VQ-f4 autoencoder, which is not an upscaler" in refusal(autoencoder)
    # The file that is wrong is the one named, not the model that came first.
    message = refusal(model, autoencoder=model, dtype=torch.float16)
    assert message == "TAD-SR.pth is not the VQ-f4 autoencoder: choose autoencoder_vq_f4.pth."


def test_missing_extra_and_misshapen_weights_are_named(tmp_path, published, unet_weights):
    weights = dict(unet_weights)
    del weights["out.2.bias"], weights["middle_block.0.in_layers.0.weight"]
    weights["lora.up"] = torch.zeros(3)
    weights["time_embed.0.weight"] = torch.zeros(640, 161)
    path = tmp_path / "TAD-SR.pth"
    torch.save(weights, path)
    message = refusal(path, autoencoder=published / "autoencoder_vq_f4.pth")
    assert "lacks 2 weights (middle_block.0.in_layers.0.weight, out.2.bias)" in message
    assert "has unknown 1 weights (lora.up)" in message
    assert "has another shape for 1 weights (time_embed.0.weight (640, 161) for (640, 160))" in message


def test_a_long_list_of_missing_weights_is_cut(tmp_path, published, unet_weights):
    path = tmp_path / "TAD-SR.pth"
    torch.save({k: v for k, v in unet_weights.items() if "output_blocks" not in k}, path)
    message = refusal(path, autoencoder=published / "autoencoder_vq_f4.pth")
    assert ", ...)" in message
    assert len(message) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, published, unet_weights, vq_weights, value):
    broken = torch.zeros(3, dtype=torch.float16)
    broken[1] = value
    torch.save({**unet_weights, "out.2.bias": broken}, tmp_path / "TAD-SR.pth")
    torch.save({**vq_weights, "decoder.conv_out.bias": broken}, tmp_path / "autoencoder_vq_f4.pth")
    options = {"dtype": torch.float16}
    assert "out.2.bias" in refusal(tmp_path / "TAD-SR.pth", autoencoder=published / "autoencoder_vq_f4.pth", **options)
    message = refusal(published / "TAD-SR.pth", "vq_f4", autoencoder=tmp_path / "autoencoder_vq_f4.pth", **options)
    assert "decoder.conv_out.bias" in message


# Files of other kinds

ESRGAN = {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3), "conv_last.bias": (3,)}
KL_VAE = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "decoder.conv_out.weight": (3, 128, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (ESRGAN, "an upscaler of another kind (ESRGAN or Real-ESRGAN): choose it in Load Upscale Model"),
        (KL_VAE, "a VAE: choose it in Load VAE"),
        ({"a": (1,)}, "not a supported model: choose a TAD-SR, SinSR or ResShift x4 file"),
    ],
    ids=["esrgan", "kl-vae", "other"],
)
def test_checkpoints_of_other_families(tmp_path, shapes, words, suffix):
    path = tmp_path / f"other{suffix}"
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if suffix == ".pth":
        torch.save({"params_ema": weights}, path)
    else:
        save_file(weights, path)
    assert f"{path.name} is {words}" in refusal(path)
    assert describe(path) == refusal(path)
    with pytest.raises(UserError, match=f"{path.name} is not the VQ-f4 autoencoder: choose"):
        resshift.load_autoencoder(read_weights(path), torch.float16)


MISTAKEN = {
    b"<!DOCTYPE html><html>404: Not Found</html>\n" * 20: "a web page",
    b"\r\n<HTML>": "a web page",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265437280\n": "a Git LFS pointer",
    b'{"error": "Access to model stabilityai/stable-diffusion-3-medium is restricted."}': "a text",
    b"Entry not found": "a text",
    b"7z\xbc\xaf\x27\x1c\0\4" + bytes(50): "an archive",
    b"\x89PNG\r\n\x1a\n" + bytes(50): "a picture",
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ".SAFETENSORS"])
def test_missing_empty_and_text_files(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    assert "does not exist" in refusal(path)
    path.touch()
    assert "is empty (0 bytes)" in refusal(path)
    for content, words in MISTAKEN.items():
        path.write_bytes(content)
        assert f"{path.name} is not a weights file but {words}" in refusal(path)
    path.unlink()
    path.mkdir()
    assert "is a folder: choose a weights file" in refusal(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, torch.zeros(2), {"state_dict": {"a": "b"}}])
def test_torch_files_without_a_table_of_weights(tmp_path, content):
    path = tmp_path / "list.pth"
    torch.save(content, path)
    assert "does not hold a table of weights" in refusal(path)


@pytest.mark.parametrize("shape", [(1, 333, 4096), (1, 2048)])
def test_prompt_embeddings_given_as_a_model_say_where_they_belong(tmp_path, shape):
    torch.save(torch.zeros(shape), tmp_path / "prompt_embeds.pt")
    assert f"one tensor of shape {shape}" in refusal(tmp_path / "prompt_embeds.pt")
    assert "for One-Step SR Prompt, or for --embeddings" in refusal(tmp_path / "prompt_embeds.pt")


def test_a_hosts_own_torch_load_is_not_asked(published, monkeypatch):
    """Automatic1111 puts a check of its own before it, which answers None for files that it does not know."""
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: None)
    assert "time_embed.0.weight" in read_weights(published / "TAD-SR.pth").tensors


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, form):
    path, marker = tmp_path / "model.pth", tmp_path / "it ran"
    content = {"state_dict": {"time_embed.0.weight": torch.zeros(2)}, "extra": Attack(marker)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert "could run code" in refusal(path)
    assert "could run code" in describe(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "bare pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the attack is a real one


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=300), st.sampled_from([".pth", ".safetensors"]), st.sampled_from([b"", b"PK"]))
def test_any_bytes_end_in_a_sentence(content, suffix, start):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"noise{suffix}"
        path.write_bytes(start + content)
        refusal(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> Path:
    """A small file of each format."""
    folder, weights = tmp_path_factory.mktemp("whole"), {"a.weight": torch.rand(20, 20), "b": torch.rand(7)}
    save_file(weights, folder / "x.safetensors")
    torch.save(weights, folder / "x.pth")
    torch.save(weights, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "legacy.ckpt"])
@settings(deadline=None, max_examples=40)
@given(share=st.floats(0.001, 0.999))
def test_a_file_cut_short_anywhere_ends_in_a_sentence(whole_files, name, share):
    assert set(read_weights(whole_files / name).tensors) == {"a.weight", "b"}
    whole = (whole_files / name).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(whole[: max(1, int(share * len(whole)))])
        refusal(path)


def test_a_published_file_cut_short_says_so(tmp_path, published):
    whole = (published / "TAD-SR.pth").read_bytes()
    path = tmp_path / "TAD-SR.pth"
    path.write_bytes(whole[: len(whole) // 2])
    assert "is cut short" in refusal(path)
