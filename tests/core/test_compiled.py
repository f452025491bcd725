"""`torch.compile` as an option: the same results, and a network that runs as it is where it fails."""

import copy
from dataclasses import replace

import pytest
import torch
from onestep_sr.sr_models.core.compiled import CompiledCall, compiled
from onestep_sr.sr_models.core.model import DetailRange, Pass, SRModel
from onestep_sr.sr_models.core.network_denoiser import NetworkDenoiser
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import recipe_of
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, latent, lr, timestep):
        if timestep[0] > 999:
            raise ValueError("no such timestep")
        return self.layer(latent).tanh() + lr * timestep[:, None, None, None]


def inputs(count=1, side=8, timestep=3.0):
    return torch.randn(count, 3, side, side), torch.randn(count, 3, side, side), torch.full((count,), timestep)


@pytest.fixture
def compile_calls(monkeypatch):
    """The batch sizes that reach the compiled network; nothing is compiled."""
    calls = []

    def stand_in(function, mode, dynamic):
        assert (mode, dynamic) == ("default", False)

        def call(*given):
            calls.append(len(given[0]))
            return function(*given)

        return call

    monkeypatch.setattr(torch, "compile", stand_in)
    return calls


def model(network, **changes):
    recipe, _ = recipe_of(BUNDLED)
    return SRModel(recipe, NetworkDenoiser(network), codec=None, **changes)


def test_the_last_tiles_are_filled_up_where_that_at_most_doubles_them(compile_calls):
    network = Network()
    plain, fast = copy.deepcopy(network), compiled(model(network)).denoiser
    for count in (4, 3, 2, 1, 4):
        given = inputs(count)
        assert torch.allclose(fast(*given), plain(*given), atol=1e-6)
    assert compile_calls == [4, 4, 4, 1, 4]
    fast(*inputs(2, side=6))
    assert compile_calls[-1] == 2


def test_less_memory_is_not_filled_up_again(compile_calls, monkeypatch):
    network = Network()
    fast = compiled(model(network)).denoiser
    fast(*inputs(4))
    monkeypatch.setattr(Network, "forward", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        fast(*inputs(4))
    monkeypatch.undo()
    network._compiled_call_impl.compiled = lambda *given: compile_calls.append(len(given[0])) or given[0]
    fast(*inputs(2))
    assert compile_calls[-1] == 2


def test_a_failure_of_the_compiler_is_told_once_and_the_network_runs_as_it_is(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler\nin many lines")

    monkeypatch.setattr(torch, "compile", fail)
    network, said = Network(), []
    plain, fast = copy.deepcopy(network), compiled(model(network), said.append).denoiser
    for _ in range(2):
        given = inputs()
        assert torch.equal(fast(*given), plain(*given))
    assert said == ["torch.compile failed (no C++ compiler): the network runs without it, at its usual speed."]


def test_an_error_of_the_network_is_its_own(compile_calls):
    network, said = Network(), []
    fast = compiled(model(network), said.append).denoiser
    with pytest.raises(ValueError, match="no such timestep"):
        fast(*inputs(timestep=1000))
    assert not said
    fast(*inputs())
    assert len(compile_calls) == 2


def test_every_network_of_a_model_is_compiled_and_copies_are_not():
    first, second, third, fourth = (Network() for _ in range(4))
    made = model(first, detail=DetailRange(0.5, lambda _: NetworkDenoiser(second)))
    step = made.recipe.step
    made = replace(made, passes=[Pass(step, NetworkDenoiser(third))], by_picture=lambda _: model(fourth))
    fast = compiled(made)
    assert fast.at_detail(None).denoiser.network is second
    assert [each.denoiser.network for each in fast.all_passes()] == [third]
    assert fast.for_picture(torch.zeros(1, 3, 8, 8)).denoiser.network is fourth
    networks = (first, second, third, fourth)
    assert all(isinstance(network._compiled_call_impl, CompiledCall) for network in networks)
    assert fast.denoiser.in_float32().network._compiled_call_impl is None


@pytest.mark.slow
def test_compiled_results_are_equal_within_rounding(monkeypatch, tmp_path):
    """With the C++ compiler; without one, the network runs as it is."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network, said = Network(), []
    plain, fast = copy.deepcopy(network), compiled(model(network), said.append).denoiser
    for count in (2, 1):
        given = inputs(count)
        assert torch.allclose(fast(*given), plain(*given), atol=1e-5)
    assert said == [] and network._compiled_call_impl is not None
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    network = copy.deepcopy(plain)
    fast, given = compiled(model(network), said.append).denoiser, inputs(3, side=9)
    assert torch.equal(fast(*given), plain(*given))
    assert len(said) == 1 and said[0].startswith("torch.compile failed (")
    torch.compiler.reset()
