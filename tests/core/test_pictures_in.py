"""`upscale` for all kinds of pictures, compared with the core's result for a batch of float32."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from formula_model import formula_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr import upscale
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale as core_upscale
from onestep_sr.sr_models.errors import UserError
from PIL import Image
from places import ROOT

MODEL = formula_model()
TWICE = UpscaleOptions(2)
LARGEST = {"uint8": 255, "uint16": 65535}
COLORS = {1: [0, 0, 0], 2: [0, 0, 0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3]}


@st.composite
def planes(draw):
    """Values (C, H, W) or (B, C, H, W) of a number type, and the type's name."""
    channels, sides = draw(st.integers(1, 4)), draw(st.tuples(st.integers(8, 20), st.integers(8, 20)))
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    dtype = draw(st.sampled_from(["uint8", "uint16", "float16", "float32", "float64"]))
    values = np.random.default_rng(draw(st.integers(0, 99))).random((*batch, channels, *sides))
    return (values * LARGEST.get(dtype, 1)).astype(dtype)


def expected(values: np.ndarray) -> np.ndarray:
    """The same kind of values, from the core's result for float32."""
    largest, dtype = LARGEST.get(values.dtype.name, 1), values.dtype
    batch = torch.tensor(values.astype(np.float32) / largest).reshape(-1, *values.shape[-3:])
    result = core_upscale(MODEL, batch[:, COLORS[values.shape[-3]]], TWICE).numpy()
    result = result[:, {1: [0], 2: [0, 3]}.get(values.shape[-3], COLORS[values.shape[-3]])]
    result = result.reshape(*values.shape[:-2], *result.shape[-2:])
    return (result if largest == 1 else (result * largest).round()).astype(dtype)


@settings(max_examples=40)
@given(planes(), st.booleans())
def test_an_array_comes_back_as_it_came(values, reverse) -> None:
    image = np.moveaxis(values, -3, -1)
    given = np.asarray(image[..., ::-1])[..., ::-1] if reverse else image  # a view with other strides
    before = given.copy()
    result = upscale(MODEL, given, TWICE)
    assert type(result) is np.ndarray and result.dtype == values.dtype
    assert np.array_equal(result, np.moveaxis(expected(values), -3, -1))
    assert np.array_equal(given, before)


@settings(max_examples=40)
@given(planes())
def test_a_tensor_comes_back_as_it_came(values) -> None:
    image = torch.from_numpy(values)
    before = image.clone()
    result = upscale(MODEL, image, TWICE)
    assert result.dtype == image.dtype and result.device == image.device
    assert np.array_equal(result.numpy(), expected(values))
    assert torch.equal(image, before)


def test_one_plane_is_grey() -> None:
    values = np.random.default_rng(0).integers(0, 256, (12, 17), np.uint8)
    wanted = expected(values[None])[0]
    assert np.array_equal(upscale(MODEL, values, TWICE), wanted)
    assert np.array_equal(upscale(MODEL, torch.from_numpy(values), TWICE).numpy(), wanted)
    assert np.array_equal(np.asarray(upscale(MODEL, Image.fromarray(values), TWICE)), wanted)
    assert np.array_equal(
        upscale(MODEL, values.astype(">u2") * 257, TWICE), expected(values.astype("u2")[None] * 257)[0]
    )


@pytest.mark.parametrize(
    ("mode", "comes_back"), [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "RGB")]
)
def test_a_pillow_image_comes_back_in_its_mode(mode, comes_back) -> None:
    values = np.random.default_rng(0).integers(0, 256, (10, 14, 4), np.uint8)
    image = Image.fromarray(values).convert(mode)
    result = upscale(MODEL, image, TWICE)
    assert isinstance(result, Image.Image) and (result.mode, result.size) == (comes_back, (28, 20))
    if mode != "1":
        array = np.moveaxis(np.atleast_3d(np.asarray(image.convert(comes_back))), -1, 0)
        assert np.array_equal(np.moveaxis(np.atleast_3d(np.asarray(result)), -1, 0), expected(array))


def test_bfloat16_and_gradients_are_no_obstacle() -> None:
    image = torch.rand(3, 10, 12).bfloat16().requires_grad_()
    result = upscale(MODEL, image, TWICE)
    assert result.dtype == torch.bfloat16 and result.shape == (3, 20, 24) and not result.requires_grad


def test_reports_reach_the_core() -> None:
    seen = []
    upscale(
        MODEL, np.zeros((16, 16), np.uint8), TWICE, progress=lambda done, total, preview: seen.append((done, total))
    )
    assert seen == [(1, 1)]


def test_values_a_little_out_of_range_are_clipped() -> None:
    image = torch.linspace(-0.005, 1.005, 12 * 12).view(1, 12, 12)
    assert torch.equal(upscale(MODEL, image, TWICE), upscale(MODEL, image.clamp(0, 1), TWICE))


def refusal(image: object) -> str:
    with pytest.raises(UserError) as caught:
        upscale(MODEL, image, TWICE)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9), min_size=0, max_size=6).map(tuple),
    st.sampled_from(["uint8", "int64", "bool", "complex64", "float32", "int16"]),
    st.booleans(),
)
def test_other_shapes_and_types_are_refused_in_one_sentence(shape, dtype, as_tensor) -> None:
    values = np.zeros(shape, dtype)
    channel = -3 if as_tensor else -1
    fits = len(shape) in (2, 3, 4) and min(shape) > 0 and (len(shape) == 2 or shape[channel] <= 4)
    sides = shape[-2:] if as_tensor or len(shape) == 2 else shape[-3:-1]
    if fits and dtype in ("uint8", "float32") and min(sides) >= 8:
        return
    message = refusal(torch.from_numpy(values) if as_tensor else values)
    if dtype not in ("uint8", "float32"):
        assert message.startswith("upscale takes a numpy array (H, W)") and message.endswith(f"not {dtype}.")
    elif not fits:
        assert message.endswith(f"not the shape {shape}.")
    else:
        assert "at least 8 px" in message


@pytest.mark.parametrize(
    "image", ["photo.png", None, [[1, 2]], 5, b"", object()], ids=lambda value: type(value).__name__
)
def test_what_is_no_picture_is_refused(image) -> None:
    assert refusal(image).endswith(f"not {type(image).__name__}.")


@pytest.mark.parametrize(("value", "words"), [(255.0, "to 255"), (-3.0, "from -3"), (np.inf, "to inf")])
def test_values_out_of_range_are_refused(value, words) -> None:
    image = np.full((12, 12, 3), 0.5)
    image[3, 4, 1] = value
    assert words in refusal(image) and words in refusal(torch.tensor(image).movedim(-1, 0))


def saved(image: Image.Image, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, **options)
    return file


def test_what_load_returns_is_a_model() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    assert np.array_equal(upscale(SimpleNamespace(model=MODEL), image, TWICE), upscale(MODEL, image, TWICE))
    for other in (None, "bundled", torch.nn.Identity(), SimpleNamespace(model=5)):
        with pytest.raises(UserError, match=r"upscale takes a model, not \w+: give load"):
            upscale(other, image, TWICE)


@pytest.mark.parametrize("options", [{"scale": 2}, 2, None, "4k"], ids=repr)
def test_options_of_another_type_are_refused(options) -> None:
    with pytest.raises(UserError, match=rf"takes UpscaleOptions, not {type(options).__name__}: give UpscaleOptions\("):
        upscale(MODEL, np.zeros((12, 16), np.uint8), options)


@pytest.mark.parametrize("name", ["scale", "tile", "overlap", "seed", "batch", "detail", "target", "color"])
@pytest.mark.parametrize("value", ["x", [1], b"x", float("nan"), True, {}], ids=repr)
def test_values_of_another_type_are_refused_in_one_sentence(name, value) -> None:
    with pytest.raises(UserError) as caught:
        upscale(MODEL, np.zeros((12, 16), np.uint8), UpscaleOptions(**{name: value}))
    message = str(caught.value)
    assert message.lower().startswith((name, repr(value), "colour match")) and message.endswith(".")
    assert "choose" in message


def test_a_target_may_be_a_text() -> None:
    image = np.zeros((12, 16), np.uint8)
    assert upscale(MODEL, image, UpscaleOptions(target="48x48")).shape == (36, 48)
    assert upscale(MODEL, image, UpscaleOptions(np.float32(2), tile=np.int64(32))).shape == (24, 32)
    for none in (None, "4"):
        with pytest.raises(UserError, match="choose"):
            UpscaleOptions(scale=none)


def test_pillow_images_that_cannot_be_read_are_refused() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    closed = Image.open(saved(photo, format="PNG"))
    closed.close()
    for image in (closed, Image.open(io.BytesIO(saved(photo, format="PNG").getvalue()[:1500]))):
        assert "is broken or closed: open it again" in refusal(image)


def test_frames_are_taken_one_at_a_time() -> None:
    frames = [Image.new("L", (12, 12), value) for value in (0, 90, 200)]
    animation = Image.open(saved(frames[0], format="GIF", save_all=True, append_images=frames[1:]))
    assert "has 3 frames: go to each with seek, and give its copy()" in refusal(animation)
    animation.seek(1)
    assert upscale(MODEL, animation.copy(), TWICE).size == (24, 24)
    photo = Image.open(saved(frames[0], format="MPO", save_all=True, append_images=frames[1:]))
    assert photo.format == "MPO" and upscale(MODEL, photo, TWICE).size == (24, 24)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_pillow_image_of_16_bits_keeps_them(mode) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (10, 14), np.uint16)
    image = Image.frombytes(mode, (14, 10), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    result = upscale(MODEL, image, TWICE)
    assert result.mode == "I;16" and np.array_equal(np.asarray(result), expected(values[None])[0])


def test_alpha_that_is_multiplied_in_comes_back_as_plain_alpha() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 2), np.uint8), "LA").convert("La")
    result = upscale(MODEL, image, TWICE)
    assert result.mode == "LA" and result == upscale(MODEL, image.convert("LA"), TWICE)


def test_a_floating_point_pillow_image_is_held_to_0_to_1() -> None:
    values = np.full((12, 12), 0.5, np.float32)
    values[3, 4] = 255
    assert "from 0.5 to 255: scale them" in refusal(Image.fromarray(values))
    values[3, 4] = 1.005
    assert upscale(MODEL, Image.fromarray(values), TWICE).size == (24, 24)


def test_tensors_without_plain_values_are_refused() -> None:
    assert refusal(torch.zeros(3, 12, 12).to_sparse()).endswith("not a sparse tensor.")
    assert refusal(torch.zeros(3, 12, 12, device="meta")).endswith("not a meta tensor.")
    assert refusal(torch.nested.nested_tensor([torch.zeros(3, 12, 12)])).endswith("not a nested tensor.")


def test_values_that_are_not_numbers_are_refused() -> None:
    assert "not finite numbers" in refusal(np.full((12, 12), np.nan))
    assert "not finite numbers" in refusal(Image.fromarray(np.full((12, 12), np.nan, np.float32)))


def test_the_readmes_example_runs(tmp_path, monkeypatch) -> None:
    [code] = re.findall(r"## Python\n\n```python\n(.*?)```", (ROOT / "docs" / "command-line.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    Image.open(ROOT / "demo" / "photo.png").convert("RGB").crop((0, 0, 24, 16)).save(tmp_path / "demo" / "photo.png")
    names: dict = {}
    exec(code, names)
    assert (names["large"].size, names["doubled"].size) == ((96, 64), (48, 32))
    assert Image.open(tmp_path / "large.png").size == (96, 64)
