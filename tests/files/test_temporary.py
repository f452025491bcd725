"""Folders that are in memory, by made-up and real tables of mounts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from onestep_sr.sr_models.files import temporary
from onestep_sr.sr_models.files.temporary import is_in_memory, spill_folder

MOUNTS = r"""/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw,size=1g 0 0
/dev/vdb /tmp/disk ext4 rw 0 0
none /mnt/my\040ram ramfs rw 0 0
tmpfs /run tmpfs rw 0 0
overlay /run ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/someone", False),
        ("/tmp", True),
        ("/tmp/a/b", True),
        ("/tmpfiles", False),
        ("/tmp/disk/a", False),
        ("/mnt/my ram/a", True),
        ("/run/a", False),  # the later mount covers the earlier one
    ],
)
def test_the_longest_mount_above_a_folder_counts(tmp_path: Path, folder: str, expected: bool) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert is_in_memory(Path(folder), tmp_path / "mounts") == expected
    assert not is_in_memory(Path(folder), tmp_path / "absent")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="Linux has this folder in memory")
def test_real_mounts_are_known() -> None:
    assert is_in_memory(Path("/dev/shm")) and not is_in_memory(Path("/proc"))


def test_the_preferred_folder_is_used_unless_it_is_in_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "usual"))
    (tmp_path / "usual").mkdir()
    memory: set[Path] = set()
    monkeypatch.setattr(temporary, "is_in_memory", lambda folder: folder in memory)
    new = tmp_path / "new"
    assert (spill_folder(new), spill_folder()) == (new, tmp_path / "usual")
    memory.add(new)
    assert spill_folder(new) == tmp_path / "usual"
    memory.add(tmp_path / "usual")
    assert spill_folder(new) not in memory
    monkeypatch.setattr(temporary, "is_in_memory", lambda folder: True)
    assert spill_folder(new) == tmp_path / "usual"
