"""Maps in pinned memory, whose transfers run beside the work: no GPU runs here, see `race_detector`."""

import pytest
import torch
from diffusers import AutoencoderKL
from onestep_sr.sr_models.codecs import seamless
from onestep_sr.sr_models.codecs.seamless import maps, pinned
from race_detector import RaceDetector
from small_autoencoders import VIDEO_KINDS, stirred, video_network

BUDGET = 2**20
KINDS = ["picture", "AutoencoderKLWan", "wan_2_2", "ltx_2", "hunyuan_video", "hunyuan_video_15"]


@pytest.fixture
def detector(monkeypatch):
    """All maps of a run in pinned memory."""

    def new(store, height, width, channels):
        store.transfers = store.transfers or pinned.Transfers(store.device)
        return pinned.PinnedMap(height, width, channels, store.dtype, store.transfers)

    def prepare(store, _):
        if store.transfers is not None:
            store.transfers.next_band()
            assert len(store.transfers.previous) <= 12, "four maps read and two written, in the band before"

    made = RaceDetector()
    made.install(monkeypatch)
    monkeypatch.setattr(maps.Store, "new", new)
    monkeypatch.setattr(maps.Store, "prepare", prepare)
    return made


def autoencoder_of(kind):
    if kind != "picture":
        return video_network(kind)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    return stirred(AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks))


def canvas_of(kind, direction):
    generator = torch.Generator().manual_seed(1)
    if kind == "picture":
        return torch.randn((1, 3, 45, 34) if direction == "encode" else (1, 4, 23, 17), generator=generator)
    _, latent_size, size, time = VIDEO_KINDS[kind]
    shape = (1, 3, 2 * time + 1, *size) if direction == "encode" else (1, 4, 3, *latent_size)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kind", KINDS)
def test_transfers_beside_the_work_never_meet_it(detector, monkeypatch, kind, direction):
    """Neither bands that arrive, leave or are freed, nor those of attention within the work on another one."""
    autoencoder, canvas, function = autoencoder_of(kind), canvas_of(kind, direction), getattr(seamless, direction)
    with detector:
        found = function(autoencoder, canvas, budget=BUDGET)
    assert not detector.races
    monkeypatch.undo()
    assert torch.allclose(found, function(autoencoder, canvas, budget=2**28), atol=1e-5)


def test_rows_that_a_later_band_covers_in_part_keep_what_a_read_waits_for(detector):
    rows = torch.randn(1, 2, 12, 3)
    with detector:
        made = pinned.PinnedMap(12, 3, 2, torch.float32, pinned.Transfers(torch.device("cpu")))
        for top, bottom in ((0, 4), (4, 8), (8, 12), (0, 6)):
            made.write(top, rows[:, :, top:bottom])
        found = made.read(6, 8)
    assert torch.equal(found, rows[:, :, 6:8])
    assert not detector.races
    assert [row[:2] for row in made.written] == [(4, 8), (8, 12), (0, 6)]
