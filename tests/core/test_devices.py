"""The default precision of each device."""

import torch
from onestep_sr.sr_models.core.devices import default_dtype


def test_default_precision_by_device():
    assert default_dtype(torch.device("cuda")) == torch.float16
    assert default_dtype(torch.device("mps")) == torch.float32
    assert default_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
