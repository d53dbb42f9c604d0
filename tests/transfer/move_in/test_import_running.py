"""A source that changes while it is imported: noticed, copied again, and reported if it does not come to rest."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.transfer.move_in import copied_content, directory_import, file_copies
from snapfs.transfer.move_in.directory_import import DirectoryImport
from snapfs.transfer.restore.restore import restore
from tests.fakes.trees.move_world import let_settle, move_in, sealed
from tests.fakes.trees.random_tree import Growing
from tests.fakes.trees.same_tree import picture, without_link_access


class MeddlingDisk(Disk):
    """Runs `meddle(n)` before the n-th pass, when the import has the source's filesystem write out."""

    def __init__(self, meddle: Callable[[int], None]) -> None:
        self._meddle, self.passes = meddle, 0

    def sync_filesystem(self, label: str, fd: int) -> None:
        if label == "import:source":
            self.passes += 1
            self._meddle(self.passes)
        super().sync_filesystem(label, fd)


def out_of(volume: Path, out: Path) -> dict[bytes, dict[str, object]]:
    with sealed(volume) as (repository, record):
        restore(repository, record, str(out))
    return without_link_access(picture(os.fsencode(out)))


@pytest.mark.parametrize("seed", [5, 6])
def test_what_changes_between_passes_is_copied_again(tmp_path: Path, seed: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    growing = Growing(os.fsencode(source), seed)
    growing.grow(50)

    def meddle(number: int) -> None:
        if 1 < number < 5:
            growing.change(6)

    disk = MeddlingDisk(meddle)
    assert move_in(source, tmp_path / "volume", disk, passes=9).changes == 0
    assert disk.passes >= 5
    assert out_of(tmp_path / "volume", tmp_path / "out") == without_link_access(picture(os.fsencode(source)))


def test_what_changes_while_it_is_copied_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b", "c"):
        (source / name).write_bytes(name.encode() * 9000)
    copied: list[int] = []
    real = copied_content.copy_part

    def copy_part(fd: int, copy: int, number: int, size: int, sparse: bool) -> tuple[bytes, bytes]:
        done = real(fd, copy, number, size, sparse)
        copied.append(number)
        if len(copied) == 1:  # after it was read, and before it is looked at again
            for name in ("a", "b", "c"):
                with open(source / name, "r+b") as file:
                    file.write(b"new")
        return done

    monkeypatch.setattr(copied_content, "copy_part", copy_part)
    assert move_in(source, tmp_path / "volume").changes == 0
    assert len(copied) > 3
    seen = out_of(tmp_path / "volume", tmp_path / "out")
    assert seen == without_link_access(picture(os.fsencode(source)))


@pytest.mark.on_disk  # a filesystem in memory writes nothing out, and sees only the first store
def test_a_store_to_a_mapped_file_is_not_missed(tmp_path: Path) -> None:
    """The first store to a page sets the time; later ones to the same page do not, until it is written out."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "mapped").write_bytes(bytes(8192))
    with open(source / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[0] = 1

        def meddle(number: int) -> None:
            if number <= 3:
                memory[0] = 10 + number

        assert move_in(source, tmp_path / "volume", MeddlingDisk(meddle), passes=9).changes == 0
        copies = (tmp_path / "volume/live/data").rglob("*")
        assert [path.read_bytes()[0] for path in copies if path.is_file()] == [13]


def test_what_does_not_come_to_rest_is_named_and_stays_for_the_next_import(tmp_path: Path) -> None:
    source, volume = tmp_path / "source", tmp_path / "volume"
    source.mkdir()
    (source / "quiet").write_bytes(b"q" * 50_000)
    let_settle()
    disk = MeddlingDisk(lambda number: (source / "log").write_text(str(number)) and None)
    report = move_in(source, volume, disk, passes=3)
    assert disk.passes == 3
    assert report.changes
    assert report.examples == [b"log"]
    assert not volume.exists()
    with contextlib.closing(DirectoryImport(str(source), str(volume), Disk(), threads=2)) as again:
        assert again.copy(3, lambda size: None).changes == 0
        assert again.copied_bytes < 50_000


def test_a_damaged_copy_is_found_and_made_again(tmp_path: Path) -> None:
    source, volume = tmp_path / "source", tmp_path / "volume"
    source.mkdir()
    (source / "file").write_bytes(b"f" * 70_000)
    (source / "other").write_bytes(b"o" * 70_000)
    with contextlib.closing(DirectoryImport(str(source), str(volume), Disk(), threads=2)) as making:
        making.copy(5, lambda size: None)
        copy = next(path for path in Path(making.volume.live_dir, "data").rglob("*") if path.is_file())
        whole = copy.read_bytes()
        copy.write_bytes(whole[:5] + b"!" + whole[6:])
        assert making.check(lambda done, total: None) == 2
        assert copy.read_bytes() == whole
        making.publish()
    assert out_of(volume, tmp_path / "out") == picture(os.fsencode(source))


def test_a_large_file_is_copied_in_parts_by_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one whose copy was cut short goes on with the part it was at."""
    for module in (copied_content, file_copies):
        monkeypatch.setattr(module, "PART_BYTES", 65_536)
    source, volume = tmp_path / "source", tmp_path / "volume"
    source.mkdir()
    with open(source / "large", "wb") as file:
        for number in range(9):
            file.seek(number * 131_072)
            file.write(os.urandom(65_536))
        file.truncate(20 * 65_536 + 1)
    let_settle()
    disk, threads = Disk(), 3
    with contextlib.closing(DirectoryImport(str(source), str(volume), disk, threads=threads)) as making:
        making.copy(5, lambda size: None)
        src = (source / "large").stat().st_ino
        parts = making._plan.parts(src)
        assert len(parts) == 21
        making._plan._db.execute("DELETE FROM part WHERE number IN (2, 20)")
        making._plan._db.execute("UPDATE inode SET copied = 0")
    with contextlib.closing(DirectoryImport(str(source), str(volume), disk, threads=threads)) as making:
        making.copy(5, lambda size: None)
        assert making.copied_bytes == 65_536 + 1
        assert [part.hash for part in making._plan.parts(src)] == [part.hash for part in parts]
        making.check(lambda done, total: None)
        making.publish()
    assert out_of(volume, tmp_path / "out") == picture(os.fsencode(source))


def test_another_directory_does_not_go_on_with_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with contextlib.closing(DirectoryImport(str(tmp_path / "one"), str(tmp_path / "volume"), Disk())):
        pass
    with pytest.raises(UserError, match="was begun by an import of"):
        DirectoryImport(str(tmp_path / "other"), str(tmp_path / "volume"), Disk())


def test_a_damaged_plan_is_begun_anew(tmp_path: Path) -> None:
    source, volume = tmp_path / "source", tmp_path / "volume"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    with contextlib.closing(DirectoryImport(str(source), str(volume), Disk())) as making:
        making.copy(1, lambda size: None)
    (tmp_path / "volume.importing/import.db").write_bytes(b"no database" * 1000)
    assert move_in(source, volume).changes == 0
    assert out_of(volume, tmp_path / "out") == picture(os.fsencode(source))


def test_a_clock_that_was_set_back_does_not_keep_it_from_coming_to_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was changed in what is the future by our clock."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    real = directory_import.time.time_ns
    monkeypatch.setattr(directory_import.time, "time_ns", lambda: real() - 3600 * 10**9)
    assert move_in(source, tmp_path / "volume").changes == 0
