"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.files.whole import write_whole
from safetensors.torch import save_file


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["shared", "private"])
def test_a_file_of_weights_has_the_mode_that_the_umask_asks_for(tmp_path: Path, umask: int) -> None:
    """safetensors writes through a file of its own that only its owner may read."""
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "weights.safetensors", partial(save_file, {"weight": torch.zeros(2)}))
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
