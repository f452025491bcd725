"""Maps in pinned memory, with streams that only note what waits for what: no GPU runs here."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKL
from onestep_sr.sr_models.codecs import seamless
from onestep_sr.sr_models.codecs.seamless import maps, pinned


class Stream:
    """A queue; `known` says how much of each queue is done once this one gets here."""

    def __init__(self, _=None):
        self.known = Counter()

    def queue(self):
        self.known[id(self)] += 1
        return self.known[id(self)]

    def record_event(self):
        event = Stream()
        event.known = Counter(self.known)
        return event

    def wait_event(self, event):
        self.known |= event.known

    wait_stream = wait_event

    def synchronize(self):
        pass


class Checked(pinned.PinnedMap):
    """Fails where rows are read before they have arrived, or stored before they are computed."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.left = [0] * self.height  # when each row was stored, in the leaving stream's time

    def read(self, top, bottom):
        arrived, transfers = self.transfers.arriving.queue(), self.transfers
        band = super().read(top, bottom)
        stored = max(self.left[top:bottom])
        assert transfers.arriving.known[id(transfers.leaving)] >= stored > 0
        assert transfers.work.known[id(transfers.arriving)] >= arrived
        assert len(transfers.current) + len(transfers.previous) <= 8  # two maps read and one written, in two bands
        return band

    def write(self, top, band):
        computed, transfers = self.transfers.work.queue(), self.transfers
        self.transfers.leaving.queue()
        super().write(top, band)
        assert transfers.leaving.known[id(transfers.work)] >= computed
        for row in range(top, top + band.shape[2]):
            self.left[row] = transfers.leaving.known[id(transfers.leaving)]


@pytest.fixture
def streams(monkeypatch):
    def unpinned(*size, pin_memory=False, **options):
        return empty(*size, **options)

    work, empty = Stream(), torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: work)
    monkeypatch.setattr(torch.cuda, "stream", contextmanager(lambda _: (yield)))
    monkeypatch.setattr(torch, "empty", unpinned)


def test_a_band_waits_only_for_the_writes_of_its_rows(streams):
    transfers = pinned.Transfers(torch.device("cpu"))
    made = pinned.PinnedMap(12, 3, 2, torch.float32, transfers)
    rows = torch.randn(1, 2, 12, 3)
    for top in (0, 4, 8):
        transfers.leaving.queue()
        made.write(top, rows[:, :, top : top + 4])
    assert torch.equal(made.read(3, 8), rows[:, :, 3:8])
    assert transfers.arriving.known[id(transfers.leaving)] == 2
    made.write(0, rows[:, :, :6])
    assert [row[:2] for row in made.written] == [(4, 8), (8, 12), (0, 6)]


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_run_on_pinned_maps_waits_for_what_it_reads(streams, monkeypatch, direction):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks).eval()
    made = []

    def new(store, height, width, channels):
        store.transfers = store.transfers or pinned.Transfers(store.device)
        made.append(Checked(height, width, channels, store.dtype, store.transfers))
        return made[-1]

    def prepare(store, _):
        if store.transfers is not None:
            store.transfers.next_band()

    monkeypatch.setattr(maps.Store, "new", new)
    monkeypatch.setattr(maps.Store, "prepare", prepare)
    canvas = torch.randn((1, 3, 45, 34) if direction == "encode" else (1, 4, 23, 17))
    found = getattr(seamless, direction)(autoencoder, canvas, budget=2**20)
    monkeypatch.undo()
    assert len(made) > 9
    assert torch.allclose(found, getattr(seamless, direction)(autoencoder, canvas, budget=2**28), atol=1e-5)
