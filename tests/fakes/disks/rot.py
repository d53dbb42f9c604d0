"""Rot: one file of a volume or of a mirror is damaged, and everything that reads it is judged.

A volume and a mirror with a short history are made, and kept as they were one snapshot earlier as well. Then again and
again one file of a copy is damaged in one of the ways of `DAMAGES`; list, verify, doctor and restore are run on it, as
a user would, and it is opened for writing, as by a daemon or a mirror. What may come of it:

- exit code 5 or 6 (or 3, for a file that is gone or is a person's to edit), and a line that names the file;
- harmless: the same facts, and the same content;
- repaired: the next opening for writing reports it, and the facts are the same.

Never a traceback, never a snapshot or a file that is silently missing or another. `Subject.files` leaves out live/,
which has a judge of its own (live_rot.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.volumes.volume import Volume
from snapfs.commands import cli
from snapfs.store.log.holds import Holds
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.protocol import messages
from snapfs.store.repository.repository import Repository
from tests.fakes.histories.history import History

DIED = 70
SEED, VOLUME_ID = 4711, "ab" * 16
WRITER_ID = "host-a"
ALLOWED = (0, 3, 5, 6)


@dataclass(frozen=True)
class Ran:
    """A command that was run. `out` with its standard error behind it."""

    code: int
    out: str


@dataclass(frozen=True)
class Subject:
    """What is damaged. `older`: the same folder one snapshot earlier."""

    path: Path
    older: Path
    facts: str
    content: str

    @property
    def files(self) -> list[str]:
        """Every file but the lock, which has no content, and those of the live tree; relative."""
        found = (each.relative_to(self.path) for each in self.path.rglob("*") if each.is_file())
        return sorted(str(each) for each in found if each.parts[0] not in ("live", "lock"))


def run(*arguments: str | Path) -> Ran:
    """A command of snapfs, in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run([str(each) for each in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    texts = []
    for each in (out, err):
        each.flush()
        texts.append(each.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Ran(code, "".join(texts))


def listed(path: Path) -> Ran:
    """The snapshots, without what only the log knew of a seal."""
    ran = run("list", "--json", path)
    if ran.code:
        return ran
    reported = json.loads(ran.out.partition("\nsnapfs:")[0])
    keys = ("number", "name", "generation", "parent", "cut_time_ns", "state")
    return Ran(0, json.dumps([{key: each.get(key) for key in keys} for each in reported]))


def digest(folder: Path) -> str:
    """Of all names, kinds and bytes below it."""
    found = hashlib.sha256()
    for each in sorted(folder.rglob("*")):
        found.update(str(each.relative_to(folder)).encode("utf-8", "surrogateescape"))
        if each.is_symlink():
            found.update(os.fsencode(os.readlink(each)))
        elif each.is_file():
            found.update(each.read_bytes())
    return found.hexdigest()


def make(folder: Path) -> tuple[Subject, Subject]:
    """A volume, and a mirror of it."""
    volume, mirror = folder / "volume", folder / "mirror" / "pg"
    identity = StoreIdentity(VOLUME_ID, SEED)
    made = Volume.create(str(volume), Disk(), seed=SEED, volume_id=VOLUME_ID)
    history = History(Path(made.store_dir), 5, identity)
    mirror.parent.mkdir()
    there = MirrorVolume.create(str(mirror), messages.CreateVolume(VOLUME_ID, f"{SEED:016x}"), Disk())
    there.claim(Generation(1), WRITER_ID, "")
    for number in range(1, 5):
        history.grow(1, steps=10, name=f"name-{number}")
        _push(there, history, number)
        if number == 3:
            shutil.copytree(volume, folder / "older-volume")
            shutil.copytree(mirror, folder / "older-mirror")
    history.close()
    there.close()
    Holds(made.store_dir, Disk()).take("somebody", [SnapshotNumber(2)], 1e9, "rot")
    return tuple(  # type: ignore[return-value]
        Subject(path, older, listed(path).out, _restored(path, folder / f"restored-{path.name}"))
        for path, older in ((volume, folder / "older-volume"), (mirror, folder / "older-mirror"))
    )


def _push(mirror: MirrorVolume, history: History, number: int) -> None:
    record = history.records[number - 1]
    lacking = [each for each in history.numbers(record) if mirror.receiver.union.row(each) is None]
    part = mirror.part(Generation(1), WRITER_ID)
    part.feed(history.part(lacking))
    part.finish()
    mirror.commit([record], False, Generation(1), WRITER_ID)


def _restored(path: Path, to: Path) -> str:
    ran = run("restore", path, "4", to)
    assert ran.code in ALLOWED, ran
    found = digest(to) if ran.code == 0 else ""
    shutil.rmtree(to, ignore_errors=True)
    return found


# -- damages: each changes a file, given its older copy (None if there is none)

Damage = Callable[[random.Random, Path, Path | None], None]


def flip(rng: random.Random, path: Path, _older: Path | None) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero(rng: random.Random, path: Path, _older: Path | None) -> None:
    data = bytearray(path.read_bytes())
    at = rng.randrange(max(len(data), 1)) // 512 * 512
    data[at : at + 512] = bytes(len(data[at : at + 512]))
    path.write_bytes(data)


def truncate(rng: random.Random, path: Path, _older: Path | None) -> None:
    os.truncate(path, rng.choice([0, max(path.stat().st_size - 1, 0), rng.randrange(max(path.stat().st_size, 1))]))


def delete(_rng: random.Random, path: Path, _older: Path | None) -> None:
    path.unlink()


def swap(_rng: random.Random, path: Path, older: Path | None) -> None:
    if older is not None and older.exists():
        shutil.copy(older, path)


DAMAGES: tuple[Damage, ...] = (flip, flip, zero, truncate, delete, swap)


# -- the judge


def damaged_and_judged(subject: Subject, name: str, damage: Damage, seed: int, work: Path) -> str:
    """What came of it, in a word. AssertionError if it may not be."""
    copy = work / "copy" / subject.path.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(subject.path, copy)
    damage(random.Random(seed), copy / name, subject.older / name)
    before = [listed(copy), run("verify", copy), run("doctor", copy)]
    words = list(_judged(subject, name, before))
    if before[0].code == 0 and before[0].out == subject.facts and before[1].code == 0:
        assert _restored(copy, work / "restored") == subject.content, "a file is another"
        words.append("harmless")
    words += _opened(subject, name, copy)
    return words[0] if words else "reported"


def _judged(subject: Subject, name: str, ran: list[Ran]) -> Iterator[str]:
    for each in ran:
        assert each.code in ALLOWED or (each.code == 3 and name in each.out), each
        assert "Traceback" not in each.out, each
        if each.code in (5, 6):
            yield f"exit {each.code}"
    listing, verified, examined = ran
    if listing.code in (3, 5, 6):
        assert Path(name).stem in listing.out, f"the file is not named: {listing}"
    elif listing.out != subject.facts:
        assert verified.code in (5, 6) or examined.code in (5, 6), f"silently another history: {listing}"


def _opened(subject: Subject, name: str, copy: Path) -> Iterator[str]:
    """As it is opened for writing: by a mirror, or by a daemon."""
    try:
        volume = Volume.open(str(copy), Disk())
        if subject.path.name == "pg":
            mirror = MirrorVolume.open(str(copy), Disk())
            states = [each.state for each in mirror.snapshot_list().snapshots]
            reported = list(mirror.recovered)
            mirror.close()
        else:
            repository = Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), Disk())
            states = [each.state for each in repository.snapshots()]
            reported = list(repository.recovered)
            repository.close()
    except (SnapfsError, OSError) as error:
        yield f"refused ({getattr(error, 'exit_code', 3)})"
        return
    wanted = len(json.loads(subject.facts))
    assert len(states) == wanted or reported, f"silently another history when opened for writing: {states}"
    if reported:
        yield "repaired" if len(states) == wanted and set(states) == {"good"} else "reported"
