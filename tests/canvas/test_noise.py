"""Noise that belongs to the canvas."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from onestep_sr.sr_models.canvas.noise import canvas_noise, noise_rows


@given(st.integers(0, 300), st.integers(1, 200), st.integers(0, 2**63 - 1))
def test_noise_does_not_depend_on_the_parts_that_are_drawn(top, count, seed):
    whole = noise_rows(2, 3, 0, 520, seed)
    assert torch.equal(noise_rows(2, 3, top, top + count, seed), whole[:, top : top + count])


def test_noise_is_normal_and_blocks_and_seeds_differ():
    noise = noise_rows(4, 100, 0, 256, 7)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    blocks = noise.split(64, dim=1)
    assert all(not torch.equal(a, b) for i, a in enumerate(blocks) for b in blocks[:i])
    assert not torch.equal(noise, noise_rows(4, 100, 0, 256, 8))


@given(st.integers(1, 4), st.integers(1, 90), st.integers(1, 90), st.integers(0, 200), st.integers(1, 15))
def test_more_noises_for_a_canvas_leave_the_first_as_it_is(channels, height, width, top, count):
    latent = torch.zeros(2, channels, height, width)
    one, several = canvas_noise(latent, 3, top), canvas_noise(latent, 3, top, count)
    assert several.shape == (2, count * channels, height, width)
    assert torch.equal(several[:, :channels], one) and torch.equal(several[0], several[1])
    assert len({float(value) for value in several[0, :, 0, 0]}) == count * channels
