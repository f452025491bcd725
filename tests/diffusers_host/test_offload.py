"""Where modules are while they compute, and afterwards; the device is torch's "meta"."""

from __future__ import annotations

import pytest
import torch
from onestep_sr.sr_models.diffusers_host.offload import Placement
from torch import nn

META = torch.device("meta")


class Moved(nn.Linear):
    """Notes where it is moved. Its memory ends on the way to `without_room`."""

    def __init__(self, without_room: str = "") -> None:
        super().__init__(2, 2)
        self.moves: list[str] = []
        self.without_room = without_room

    def to(self, device: torch.device | str) -> Moved:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.moves.append(str(device))
        if str(device) == self.without_room:
            raise MemoryError
        return super().to(device) if str(device) == "meta" else super().to_empty(device=device)


def test_a_module_that_is_on_the_device_is_not_moved_again() -> None:
    module = Moved()
    for _ in range(3):
        with Placement(META).on_device(module):
            assert module.weight.is_meta
    assert module.moves == ["meta"]
    module.to("cpu")  # by its host
    with Placement(META).on_device(module):
        assert module.weight.is_meta


def test_an_offloaded_module_is_moved_every_time() -> None:
    module = Moved()
    for _ in range(2):
        with Placement(META, offload=True).on_device(module):
            assert module.weight.is_meta
        assert module.weight.device.type == "cpu"
    assert module.moves == ["meta", "cpu"] * 2


@pytest.mark.parametrize("offload", [False, True], ids=["kept", "offloaded"])
def test_a_module_without_room_on_the_device_leaves_it(offload: bool) -> None:
    module = Moved(without_room="meta")
    with pytest.raises(MemoryError), Placement(META, offload).on_device(module):
        pass
    assert module.moves == ["meta", "cpu"]
