"""A volume that was never there: who makes one, who is reported, and what is left when a mount fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError
from snapfs.base.staged_folder import building_folder
from snapfs.base.volumes.volume import Volume
from snapfs.commands.support.create_volume import NewVolume
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21
SNAPFS = [sys.executable, "-m", "snapfs"]


@pytest.mark.parametrize(
    ("words", "partner"),
    [
        (["--token-file", "token"], "--from"),
        (["--ca", "ca.pem"], "--from"),
        (["--certificate", "own.pem"], "--from"),
        (["--certificate-key", "own.key"], "--from"),
        (["--store-option", "region=x"], "--from"),
        (["--key-file", "key"], "--from"),
        (["--key-command", "cat key"], "--from"),
        (["--force"], "--from"),
        (["--from", "file:///nowhere", "--certificate-key", "own.key"], "--certificate"),
        (["--from", "file:///nowhere", "--key-file", "key", "--key-command", "cat key"], "--key-command"),
    ],
)
def test_an_option_without_its_partner_is_refused_and_makes_no_volume(
    snapfs: Any, volume_dir: Path, mountpoint: Path, words: list[str], partner: str
) -> None:
    done = snapfs("mount", *words, volume_dir, mountpoint, check=False)
    assert done.returncode == 2, done.stderr
    assert partner in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not volume_dir.exists()
    assert not os.path.ismount(mountpoint)


def test_a_standby_takes_no_access_without_its_source(snapfs: Any, volume_dir: Path) -> None:
    done = snapfs("standby", "--token-file", "token", volume_dir, check=False)
    assert (done.returncode, "--from" in done.stderr) == (2, True)


@pytest.mark.parametrize("words", [["--existing"], ["-o", "existing"], ["--existing", "--foreground"]])
def test_with_existing_a_typing_error_or_an_absent_disk_makes_no_volume(
    snapfs: Any, volume_dir: Path, mountpoint: Path, words: list[str]
) -> None:
    done = snapfs("mount", *words, volume_dir, mountpoint, check=False)
    assert done.returncode == 3
    assert f"snapfs: there is no volume at {volume_dir}, and --existing creates none: is its disk" in done.stderr
    assert not volume_dir.exists()
    volume_dir.mkdir()  # where the disk will be
    assert snapfs("mount", *words, volume_dir, mountpoint, check=False).returncode == 3
    assert list(volume_dir.iterdir()) == []


@pytest.mark.parametrize("words", [["-o", "ro"], ["-o", "ro", "--foreground"]])
def test_a_read_only_mount_of_a_typing_error_makes_no_volume(
    snapfs: Any, volume_dir: Path, mountpoint: Path, words: list[str]
) -> None:
    done = snapfs("mount", *words, volume_dir, mountpoint, check=False)
    assert done.returncode == 3
    assert f"snapfs: there is no volume at {volume_dir}, and -o ro creates none: is its disk" in done.stderr
    assert not volume_dir.exists()
    assert not os.path.ismount(mountpoint)


def test_existing_mounts_what_exists_and_create_undoes_it(snapfs: Any, mount: Any, mountpoint: Path) -> None:
    mount("--existing", "-o", "create")
    snapfs("umount", mountpoint)
    assert mount("--existing").status()["pid"]


def test_existing_does_not_begin_a_volume_from_elsewhere(
    snapfs: Any, mounted: Any, tmp_path: Path, volume_dir: Path
) -> None:
    snapfs("snapshot", mounted.path)
    snapfs("umount", mounted.path)
    done = snapfs("mount", "--existing", "--from", volume_dir, tmp_path / "new", mounted.path, check=False)
    assert (done.returncode, "--existing creates none" in done.stderr) == (3, True)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="takes root")
@pytest.mark.parametrize("form", [[], ["--foreground"]])
@pytest.mark.parametrize("there", [False, True])
def test_a_failed_mount_leaves_no_folder_behind(
    snapfs: Any, volume_dir: Path, mountpoint: Path, form: list[str], there: bool
) -> None:
    if there:
        volume_dir.mkdir()
    # The daemon makes its live tree and its store, and then may not mount.
    drop = f"import ctypes, os, sys; assert not ctypes.CDLL(None).prctl({PR_CAPBSET_DROP}, {CAP_SYS_ADMIN})"
    words = [*SNAPFS, "mount", *form, str(volume_dir), str(mountpoint)]
    done = subprocess.run(
        [sys.executable, "-c", f"{drop}; os.execv(sys.executable, sys.argv[1:])", *words],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=ROOT,
    )  # fmt: skip
    assert "created a new volume" in done.stderr
    assert done.returncode != 0
    assert not os.path.ismount(mountpoint)
    assert volume_dir.exists() == there
    assert not there or list(volume_dir.iterdir()) == []


@pytest.mark.parametrize("touched", ["file", "settings", "lock", "snapshot"])
def test_a_new_volume_that_somebody_used_is_never_removed(volume_dir: Path, touched: str) -> None:
    new = NewVolume(str(volume_dir), existing=False)
    other = None
    with pytest.raises(RuntimeError), new:
        assert new.create()
        if touched == "file":
            (volume_dir / "live" / "data" / "00").mkdir(parents=True)
            (volume_dir / "live" / "data" / "00" / "2").write_text("bytes")
        elif touched == "settings":
            with open(volume_dir / "volume.toml", "a") as file:
                file.write("# mine\n")
        elif touched == "snapshot":
            (volume_dir / "store" / "snapshots.log").write_text("not to be understood, so not to be removed")
        else:
            other = Volume.open(str(volume_dir), Disk())
            other.lock("mounted elsewhere")
        raise RuntimeError
    assert Volume.exists(str(volume_dir))
    if other is not None:
        other.unlock()


def test_an_empty_volume_that_was_mounted_in_the_foreground_stays(volume_dir: Path, mountpoint: Path) -> None:
    words = [*SNAPFS, "mount", "--foreground", str(volume_dir), str(mountpoint)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"is mounted at" in line:
                break
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert Volume.exists(str(volume_dir))


def test_of_two_that_create_one_volume_one_does_and_the_other_gets_an_error(volume_dir: Path) -> None:
    """Many threads, one volume, one identity."""
    outcomes: list[object] = []
    start = threading.Barrier(8)

    def create() -> None:
        start.wait()
        try:
            outcomes.append(Volume.create(str(volume_dir), Disk()).volume_id)
        except (UserError, BusyError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [each for each in outcomes if isinstance(each, str)]
    assert made == [Volume.open(str(volume_dir), Disk()).volume_id]
    assert all("is a volume already" in str(each) for each in outcomes if not isinstance(each, str))


def test_a_creator_waits_for_the_one_that_is_at_work(volume_dir: Path) -> None:
    """The second comes while the first writes volume.toml: it does not write another over it."""
    at_work, go_on = threading.Event(), threading.Event()

    class SlowDisk(Disk):
        def replace_file(self, label: str, path: str, data: bytes) -> None:
            at_work.set()
            go_on.wait(PATIENCE_S)
            super().replace_file(label, path, data)

    ids: list[str] = []
    first = threading.Thread(target=lambda: ids.append(Volume.create(str(volume_dir), SlowDisk()).volume_id))
    first.start()
    at_work.wait(PATIENCE_S)
    errors: list[str] = []

    def create() -> None:
        try:
            Volume.create(str(volume_dir), Disk())
        except UserError as error:
            errors.append(str(error))

    second = threading.Thread(target=create)
    second.start()
    second.join(0.2)
    assert errors == []
    go_on.set()
    first.join()
    second.join()
    assert errors == [f"{volume_dir} is a volume already: name another folder"]
    assert ids == [Volume.open(str(volume_dir), Disk()).volume_id]


def test_two_mounts_that_create_one_volume_at_the_same_time(snapfs: Any, volume_dir: Path, tmp_path: Path) -> None:
    places = [tmp_path / f"at{number}" for number in range(3)]
    for place in places:
        place.mkdir()
    running = [
        subprocess.Popen([*SNAPFS, "mount", str(volume_dir), str(place)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for place in places
    ]
    ended = [(process.communicate(timeout=PATIENCE_S)[1], process.returncode) for process in running]
    try:
        assert sorted(code for _, code in ended) == [0, 4, 4], ended
        assert all("is in use by process" in words for words, code in ended if code)
        assert sum("created a new volume" in words for words, _ in ended) == 1
        (winner,) = [place for place in places if os.path.ismount(place)]
        (winner / "file").write_text("kept")
        snapfs("snapshot", winner)
        snapfs("verify", winner)
    finally:
        for place in places:
            if os.path.ismount(place):
                snapfs("umount", place)


def test_a_folder_is_built_by_one_at_a_time_and_goes_when_that_fails(tmp_path: Path) -> None:
    place, partial = tmp_path / "volume", tmp_path / "volume.partial"
    partial.mkdir()
    (partial / "left").write_text("of a crash")
    with building_folder(str(place), Disk()) as building:
        assert os.listdir(building) == []
        (partial / "file").write_text("mine")
        with pytest.raises(BusyError, match="another process is making"), building_folder(str(place), Disk()):
            pass
        assert os.listdir(building) == ["file"]
        os.rename(building, place)
    assert (place / "file").read_text() == "mine"
    with pytest.raises(RuntimeError), building_folder(str(tmp_path / "other"), Disk()):
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["volume"]


def test_what_the_units_mount_must_exist_and_its_disk_is_waited_for() -> None:
    unit = (ROOT / "systemd/snapfs@.service").read_text()
    assert "ExecStart=/usr/local/bin/snapfs mount --foreground --existing " in unit
    assert "\nRequiresMountsFor=/srv/volumes\n" in unit
    assert 'mount --existing -o "$options"' in (ROOT / "systemd/mount.fuse.snapfs").read_text()
