"""A death at every durable act of a repair: nothing that was good is lost, and the next repair ends what it began."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import FRAME_BYTES
from snapfs.store.repair import verify
from snapfs.store.repository.repository import Repository
from snapfs.transfer.repair.repair import RepairReport, repair
from tests.fakes.disks.crashes import Crash, CrashDisk, PowerCutDisk
from tests.fakes.histories.history import IDENTITY, History


def opened(store: Path, disk: Disk, *, readonly: bool = False) -> Repository:
    return Repository.open(str(store), IDENTITY, disk, readonly=readonly)


def harm(store: Path) -> set[int]:
    """Damage two objects in one segment and take another segment away; the numbers of the two."""
    repository = opened(store, Disk(), readonly=True)
    try:
        first, second = repository.index.segments()[1], repository.index.segments()[3]
        reader = repository.index.reader(first.first)
        assert reader is not None
        hit = random.Random(5).sample([row for row in reader.rows() if row.stored], 2)
        with open(first.path, "r+b") as file:
            for row in hit:
                file.seek(row.offset + FRAME_BYTES + row.stored // 2)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 0x5A]))
        Path(second.path).unlink()
        return {row.number for row in hit}
    finally:
        repository.close()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store that is damaged, and a whole one with the same history."""
    base = tmp_path_factory.mktemp("repair")
    history = History(base / "whole", seed=3)
    history.scatter()
    history.grow(5)
    history.repository.close()
    shutil.copytree(base / "whole", base / "harmed")
    harm(base / "harmed")
    return base / "harmed", base / "whole"


def repaired(store: Path, whole: Path, disk: Disk) -> RepairReport:
    mirror, repository = opened(whole, Disk(), readonly=True), None
    try:
        repository = opened(store, disk)
        return repair(repository, repository.snapshots(), fetch=mirror.read)
    finally:
        for each in (mirror, repository):
            if each is not None:
                each.close()


def bad_numbers(store: Path) -> set[int]:
    repository = opened(store, Disk(), readonly=True)
    try:
        return set(verify.verify(repository, repository.snapshots(), threads=1).bad_numbers)
    finally:
        repository.close()


def readable(store: Path) -> set[int]:
    """The objects that can be read, no matter who needs them."""
    repository, found = opened(store, Disk(), readonly=True), set()
    try:
        for info in repository.index.segments():
            reader = repository.index.reader(info.first)
            for row in reader.rows() if reader is not None else ():
                with contextlib.suppress(CorruptionError):
                    repository.objects.read_uncached(row.number)
                    found.add(row.number)
        return found
    finally:
        repository.close()


def acts(stores: tuple[Path, Path], folder: Path) -> list[str]:
    shutil.copytree(stores[0], folder)
    disk = CrashDisk()
    assert repaired(folder, stores[1], disk).after.is_good
    return disk.labels


def test_a_repair_has_the_acts_that_it_says(stores: tuple[Path, Path], tmp_path: Path) -> None:
    labels = acts(stores, tmp_path / "store")
    assert {"repair:segment", "repair:segment-name", "repair:segment-folder", "repair:keep", "repair:clear"} <= set(
        labels
    )


DEATHS = ("kill", "half", "power")


def death_at(act: int) -> str:
    """They take turns, and begin with another one each time, so that no rhythm of the acts keeps one from any."""
    return DEATHS[(act + act // len(DEATHS)) % len(DEATHS)]


@pytest.mark.parametrize("turn", range(len(DEATHS)))
def test_a_death_at_any_act_leaves_what_was_good_and_a_way_on(
    stores: tuple[Path, Path], tmp_path: Path, turn: int
) -> None:
    """The kinds of death take turns over the acts: there are some 170, the same ones for each segment that is written,
    so that each kind comes to each of them several times."""
    harmed, whole = stores
    before, labels = readable(harmed), acts(stores, tmp_path / "counted")
    for at in range(turn, len(labels), len(DEATHS)):
        death = death_at(at)
        store = tmp_path / f"{death}-{at}" / "store"
        shutil.copytree(harmed, store)
        disk = PowerCutDisk(store, at) if death == "power" else CrashDisk(at, half=death == "half")
        with pytest.raises(Crash):
            repaired(store, whole, disk)
        if isinstance(disk, PowerCutDisk):
            disk.cut()
        assert before <= readable(store), at
        report = repaired(store, whole, Disk())
        assert report.after.is_good, (at, disk.labels[-1])
        left = sorted(path.suffix for path in (store / "segments").iterdir() if path.suffix != ".seg")
        assert left == [], (at, left)
        assert bad_numbers(store) == set()
        shutil.rmtree(store.parent)


def test_each_kind_of_death_comes_to_each_act(stores: tuple[Path, Path], tmp_path: Path) -> None:
    labels = acts(stores, tmp_path / "store")
    met = {(label, death_at(at)) for at, label in enumerate(labels)}
    assert met == {(label, death) for label in labels for death in DEATHS}
