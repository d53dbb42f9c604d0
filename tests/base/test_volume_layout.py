"""A volume on disk: made once, opened by one, never guessed at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, CorruptionError, SnapfsError, UserError, VersionError
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_lock import lock_holder


class Crash(Exception):
    """The machine stops here."""


class CrashingDisk(Disk):
    """Stops at the durable act number `at` (from 0)."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
        value = super().__getattribute__(name)
        if name in Disk.__dict__ and name != "replace_file" and not name.startswith("_"):
            if self.left == 0:
                raise Crash(name)
            self.left -= 1
        return value


def edit(volume: Path, old: str, new: str) -> None:
    text = (volume / "volume.toml").read_text()
    assert old in text
    (volume / "volume.toml").write_text(text.replace(old, new))


def test_what_is_created_is_opened_again(volume_dir: Path) -> None:
    made = Volume.create(str(volume_dir), Disk(), settings={"snapshots": {"every": "5s"}})
    found = Volume.open(str(volume_dir), Disk())
    assert (found.volume_id, found.seed, found.generation) == (made.volume_id, made.seed, 1)
    assert found.config.snapshots.every == 5
    assert sorted(os.listdir(volume_dir)) == ["live", "lock", "store", "volume.toml"]
    assert (volume_dir.stat().st_mode & 0o777, (volume_dir / "volume.toml").stat().st_mode & 0o777) == (0o700, 0o600)
    found.check_invariants()


def test_two_volumes_differ_in_id_and_seed_and_a_seed_can_be_given(tmp_path: Path) -> None:
    one, other = (Volume.create(str(tmp_path / name), Disk()) for name in "ab")
    assert one.volume_id != other.volume_id
    assert one.seed != other.seed
    clone = Volume.create(str(tmp_path / "c"), Disk(), seed=one.seed, generation=7)
    assert (clone.seed, clone.generation) == (one.seed, 7)


def test_a_crash_while_creating_leaves_nothing_or_a_volume(tmp_path: Path) -> None:
    for step in range(100):
        path = tmp_path / str(step)
        try:
            Volume.create(str(path), CrashingDisk(step))
            break
        except Crash:
            if not Volume.exists(str(path)):
                Volume.create(str(path), Disk())
            Volume.open(str(path), Disk()).check_invariants()
    assert step > 5


def test_a_crash_while_raising_the_generation_leaves_the_old_or_the_new(volume_dir: Path) -> None:
    Volume.create(str(volume_dir), Disk())
    for step in range(100):
        volume = Volume.open(str(volume_dir), CrashingDisk(step))
        before = volume.generation
        volume.lock()
        try:
            volume.bump_generation()
            break
        except Crash:
            assert Volume.open(str(volume_dir), Disk()).generation in {before, before + 1}
        finally:
            volume.unlock()
    assert step >= 3


def test_a_new_generation_keeps_comments_and_settings(volume_dir: Path) -> None:
    volume = Volume.create(str(volume_dir), Disk())
    edit(volume_dir, "[seal]\n", "[seal]\n# mine\nthreads = 3  # and this\n")
    before = (volume_dir / "volume.toml").read_text()
    volume.lock()
    assert volume.bump_generation() == 2
    assert volume.bump_generation(to=9) == 9
    volume.unlock()
    after = (volume_dir / "volume.toml").read_text()
    kept = [line for line in after.splitlines() if not line.startswith("checksum = ")]
    wanted = before.replace("generation = 1", "generation = 9").splitlines()
    assert kept == [line for line in wanted if not line.startswith("checksum = ")]
    assert len(kept) == len(wanted) - 1


def test_one_at_a_time(volume_dir: Path) -> None:
    first = Volume.create(str(volume_dir), Disk())
    first.lock("mounted at /srv/db")
    assert lock_holder(str(volume_dir)) == f"process {os.getpid()}, mounted at /srv/db"
    second = Volume.open(str(volume_dir), Disk())
    with pytest.raises(BusyError, match=f"in use by process {os.getpid()}, mounted at /srv/db"):
        second.lock()
    first.unlock()
    assert lock_holder(str(volume_dir)) is None
    second.lock()
    second.unlock()


def test_a_killed_holder_leaves_no_lock(volume_dir: Path) -> None:
    Volume.create(str(volume_dir), Disk())
    script = (
        "import sys, time; from snapfs.base.volumes.volume import Volume; from snapfs.base.blocks import Disk;"
        "Volume.open(sys.argv[1], Disk()).lock(); print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(volume_dir)], stdout=subprocess.PIPE, text=True
    ) as writer_id:
        assert writer_id.stdout is not None
        assert writer_id.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match=f"process {writer_id.pid}"):
            Volume.open(str(volume_dir), Disk()).lock()
        writer_id.kill()
    volume = Volume.open(str(volume_dir), Disk())
    volume.lock()
    volume.unlock()


@pytest.mark.parametrize(
    ("old", "new", "kind", "line"),
    [
        ("format = 1", "format = 2", VersionError, "has format 2, this snapfs knows up to 1: use a later snapfs"),
        ("format = 1\n", "", CorruptionError, "the [volume] table with its format is missing"),
        ("generation = 1", "generation = 0", CorruptionError, "kept by snapfs and was changed"),
        ("generation = 1", "generation = 65536", CorruptionError, "kept by snapfs and was changed"),
        ("generation = 1", "generation = 2", CorruptionError, "wrong checksum"),
        ('id = "', 'id = "x', CorruptionError, "kept by snapfs and was changed"),
        ('seed = "', 'seed = "00', CorruptionError, "kept by snapfs and was changed"),
        ("[volume]", "[volume", CorruptionError, "the [volume] table with its format is missing"),
        ("[seal]", "[seal", UserError, "at line"),
        ("[volume]", "volume = 3\n[other]", CorruptionError, "the [volume] table with its format is missing"),
        ("[seal]", "[sael]", UserError, "unknown setting `sael`"),
    ],
)
def test_a_changed_file_is_refused_in_one_line(
    volume_dir: Path, old: str, new: str, kind: type[SnapfsError], line: str
) -> None:
    Volume.create(str(volume_dir), Disk())
    edit(volume_dir, old, new)
    with pytest.raises(kind) as caught:
        Volume.open(str(volume_dir), Disk())
    assert line in str(caught.value)
    assert str(volume_dir / "volume.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_later_format_is_refused_before_its_unknown_settings(volume_dir: Path) -> None:
    Volume.create(str(volume_dir), Disk())
    edit(volume_dir, "format = 1", "format = 9")
    edit(volume_dir, "[seal]", "[teleport]")
    with pytest.raises(VersionError):
        Volume.open(str(volume_dir), Disk())


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: None, "there is no volume at"),
        (lambda p: p.mkdir(), "it has no volume.toml"),
        (lambda p: p.write_text(""), "not even a folder"),
        (lambda p: (p.mkdir(), (p / "volume.toml").mkdir()), "cannot read it"),
    ],
)
def test_a_wrong_path_is_one_line(volume_dir: Path, make, line: str) -> None:  # type: ignore[no-untyped-def]
    make(volume_dir)
    with pytest.raises(UserError, match=line):
        Volume.open(str(volume_dir), Disk())


def test_a_file_that_is_no_text_is_damaged(volume_dir: Path) -> None:
    """Not a wrong path, nor a wrong setting: exit code 5, as for any damaged byte."""
    volume_dir.mkdir()
    (volume_dir / "volume.toml").write_bytes(b"\xff")
    with pytest.raises(CorruptionError, match=r"volume\.toml is damaged: not UTF-8"):
        Volume.open(str(volume_dir), Disk())


@pytest.mark.parametrize("stranger", ["photo.jpg", "live/namespace.db", "store/snapshots.log"])
def test_a_folder_with_something_in_it_is_not_taken_over(volume_dir: Path, stranger: str) -> None:
    (volume_dir / stranger).parent.mkdir(parents=True)
    (volume_dir / stranger).write_text("mine")
    with pytest.raises(UserError, match="not empty and not a volume"):
        Volume.create(str(volume_dir), Disk())
    assert (volume_dir / stranger).read_text() == "mine"
    assert len(list(volume_dir.iterdir())) == 1


def test_a_volume_is_not_created_over_another(volume_dir: Path) -> None:
    Volume.create(str(volume_dir), Disk())
    with pytest.raises(UserError, match="is a volume already"):
        Volume.create(str(volume_dir), Disk())
