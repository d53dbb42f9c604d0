"""The native data path does what its Python twin does: both are driven with the same operations and compared.

Equal must be: every answer and every errno; bytes, sizes and times; the dirty map of each file; the intent logs, byte
for byte; what each cut shows, chunk by chunk, while both go on changing; and all that after kills and power cuts.

SNAPFS_TWIN_SEEDS="1-50" and SNAPFS_TWIN_STEPS=5000 select a longer form.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.attributes import Attr
from snapfs.live.content import datapath
from snapfs.live.content.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from snapfs.live.cut import Cut, FrozenFile
from snapfs.live.intents.dirty_map import DirtyMap
from snapfs.live.intents.intent_records import IntentKind, record
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

pytestmark = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "built")

STEPS = int(os.environ.get("SNAPFS_TWIN_STEPS", "1500"))
LOW, _, HIGH = os.environ.get("SNAPFS_TWIN_SEEDS", "1-4").partition("-")
FILES = 5
MAX_SIZE = 12 * CHUNK_SIZE
MODES = [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE, 8]


@dataclass
class Twin:
    """One live tree, its clock, and its open cut with the files the sealer has open."""

    folder: Path
    kind: str
    boot: int = 0
    lives: int = 0
    now_ns: int = 1_700_000_000_000_000_000
    cut: Cut | None = None

    def __post_init__(self) -> None:
        self.live.mkdir(parents=True)
        self.frozen: dict[Ino, FrozenFile] = {}
        self.open()

    @property
    def live(self) -> Path:
        return self.folder / self.kind / f"live{self.lives}"

    def clock(self) -> int:
        return self.now_ns

    def open(self) -> None:
        disk = Disk()
        self.tree = LiveTree(
            str(self.live), Namespace(str(self.live / "namespace.db"), disk, self.clock), disk, boot_id=f"{self.boot}",
            clock=self.clock, data_path=self.kind, max_open_files=4, max_states=4,
        )  # fmt: skip

    def end_cut(self, sealed: bool) -> None:
        if self.cut is not None:
            for file in self.frozen.values():
                file.close()
            self.frozen.clear()
            self.cut.finish(sealed)
            self.cut = None

    def restart(self, clean: bool, power_cut: bool) -> None:
        before = self.live
        for state in self.tree._content.pending_times():
            self.tree._content.apply_times(state)  # times that a kill takes back were not promised
        if clean:
            self.end_cut(False)
            self.tree.close()
        else:
            self.lives += 1
            shutil.copytree(before, self.live, copy_function=shutil.copy2)
            self.end_cut(False)
            self.tree.close(clean=False)
        self.boot += power_cut
        self.open()

    # -- what can be seen of it

    def dirty(self) -> dict[Ino, Any]:
        return {ino: described(state.dirty) for ino, state in self.tree._content.current.files.items()}

    def intents(self) -> dict[str, bytes]:
        folder = self.live / "intents"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def shown(self) -> dict[Ino, Any]:
        """All that the open cut shows but for the bytes, which can be read once."""
        assert self.cut is not None
        found: dict[Ino, Any] = {}
        for ino in sorted({*self.cut.changed_files(), *(ino for ino, _ in self.cut.names.changed())} - {ROOT_INO}):
            file = self.cut.open_file(ino)
            assert file is not None
            self.frozen[ino] = file
            found[ino] = (file.size, file.mtime_ns, file.ctime_ns, file.whole, list(file.dirty_chunks()))
        return found


def described(dirty: DirtyMap) -> Any:
    """Its content. A mask above the floor means nothing, and a life may forget it."""
    return dirty.floor, dirty.reach, dirty.whole, dirty.listed_chunks(), dirty.is_clean(), list(dirty.runs())


class Pair:
    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.twins = [Twin(folder, "python"), Twin(folder, "native")]
        self.inos: list[Ino] = []
        self.unread: list[tuple[Ino, int]] = []
        self.counts: dict[str, int] = {}
        for number in range(FILES):
            name = b"%d" % number
            attr = self.both(lambda twin, name=name: twin.tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0))
            self.inos.append(attr.ino)
            self.both(lambda twin, ino=attr.ino: twin.tree.open(ino, True))

    def both(self, act: Callable[[Twin], Any]) -> Any:
        """Do it to both; what comes of it must be the same."""
        one, two = (self.outcome(act, twin) for twin in self.twins)
        assert one == two
        return one

    def outcome(self, act: Callable[[Twin], Any], twin: Twin) -> Any:
        try:
            found = act(twin)
            return found._replace(blocks512=0) if isinstance(found, Attr) else found  # those are the host's
        except OSError as failure:
            return "errno", failure.errno

    def step(self) -> None:
        names = ["write"] * 12 + ["truncate"] * 2 + ["fallocate"] * 5 + ["copy"] * 4 + ["seek"] * 2 + ["times"] * 2
        for twin in self.twins:
            twin.now_ns += 1_000_000
        names += ["read"] * 2 + ["sync"] * 2 + ["consume"] * 12 + ["cut"] * 3 + ["finish"] + ["house"] + ["compare"]
        name = self.rng.choice([*names, "restart"] if self.rng.random() < 0.15 else names)
        self.counts[name] = self.counts.get(name, 0) + 1
        getattr(self, name)()

    def offset(self) -> int:
        return self.rng.choice([0, self.rng.randrange(MAX_SIZE), self.rng.randrange(12) * CHUNK_SIZE])

    def length(self) -> int:
        return self.rng.choice([1, 128, 4096, 10_000, CHUNK_SIZE, 3 * CHUNK_SIZE])

    def write(self) -> None:
        ino, offset, data = self.rng.choice(self.inos), self.offset(), self.rng.randbytes(self.length())
        self.both(lambda twin: twin.tree.write(ino, offset, data))
        self.wrote(ino)

    def wrote(self, ino: Ino) -> None:
        """As the kernel does: else the host's own time would show, once the file's state is evicted."""
        self.both(lambda twin: twin.tree.setattr(ino, mtime_ns=twin.now_ns, ctime_ns=twin.now_ns))

    def truncate(self) -> None:
        ino, size = self.rng.choice(self.inos), self.rng.choice([0, self.offset()])
        self.both(lambda twin: twin.tree.setattr(ino, size=size))
        self.wrote(ino)

    def fallocate(self) -> None:
        ino, mode, offset, length = self.rng.choice(self.inos), self.rng.choice(MODES), self.offset(), self.length()
        length = 0 if length == 128 else length  # which is invalid
        self.both(lambda twin: twin.tree.fallocate(ino, mode, offset, length))
        self.wrote(ino)

    def copy(self) -> None:
        source, ino = self.rng.choice(self.inos), self.rng.choice(self.inos)
        start, offset, length = self.offset(), self.offset(), self.length()
        self.both(lambda twin: twin.tree.copy_range(source, start, ino, offset, length))
        self.wrote(ino)

    def seek(self) -> None:
        ino, offset = self.rng.choice(self.inos), self.offset()
        whence = self.rng.choice([os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END])
        self.both(lambda twin: twin.tree.lseek(ino, offset, whence))

    def times(self) -> None:
        ino = self.rng.choice(self.inos)
        mtime_ns = self.rng.choice([None, self.rng.randrange(1 << 60), self.twins[0].now_ns])
        ctime_ns = self.rng.randrange(1 << 60)
        self.both(lambda twin: twin.tree.setattr(ino, mtime_ns=mtime_ns, ctime_ns=ctime_ns))

    def read(self) -> None:
        ino, offset, length = self.rng.choice(self.inos), self.offset(), self.length()
        self.both(lambda twin: twin.tree.read(ino, offset, length))

    def sync(self) -> None:
        ino, datasync = self.rng.choice(self.inos), self.rng.random() < 0.5
        self.both(lambda twin: twin.tree.fsync(ino, datasync))

    def cut(self) -> None:
        if self.twins[0].cut is None:
            for twin in self.twins:
                twin.cut = twin.tree.cut()
            if self.rng.random() < 0.5:
                return
        if not self.twins[0].frozen:
            shown = self.both(Twin.shown)
            self.unread = [(ino, chunk) for ino, what in shown.items() for chunk, _ in what[-1]]
            self.rng.shuffle(self.unread)

    def consume(self) -> None:
        if self.unread and self.twins[0].frozen:
            ino, chunk = self.unread.pop()
            self.both(lambda twin: twin.frozen[ino].read_chunk(chunk))  # type: ignore[arg-type]
            self.counts["chunks"] = self.counts.get("chunks", 0) + 1

    def finish(self) -> None:
        sealed = self.rng.random() < 0.6
        self.both(lambda twin: twin.end_cut(sealed))
        self.unread.clear()

    def house(self) -> None:
        self.both(lambda twin: (twin.tree.tidy(), twin.tree.sync_soon()))

    def restart(self) -> None:
        clean, power_cut = self.rng.random() < 0.3, self.rng.random() < 0.3
        self.unread.clear()
        self.both(lambda twin: twin.restart(clean, power_cut))
        for ino in self.inos:
            self.both(lambda twin, ino=ino: twin.tree.open(ino, True))
        self.compare()

    def compare(self) -> None:
        self.both(Twin.dirty)
        self.both(Twin.intents)
        self.both(lambda twin: (twin.tree.dirty_files, twin.tree.dirty_bytes, twin.tree.open_files()))
        for ino in self.inos:
            self.both(lambda twin, ino=ino: twin.tree.getattr(ino))
            self.both(lambda twin, ino=ino: twin.tree.read(ino, 0, 1 << 30))
        self.both(lambda twin: twin.tree.check_invariants())


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory: there holes are where they were made. On a disk they come and go with the write-back."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("seed", range(int(LOW), int(HIGH or LOW) + 1))
def test_the_twins_agree(seed: int, memory: Path) -> None:
    pair = Pair(memory, seed)
    try:
        for number in range(STEPS):
            try:
                pair.step()
            except BaseException as failure:
                failure.add_note(f"seed {seed}, step {number}, {pair.counts}")
                raise
        pair.compare()
        assert pair.counts["chunks"] > STEPS / 20
    finally:
        for twin in pair.twins:
            twin.end_cut(False)
            twin.tree.close()


def test_records_are_the_same() -> None:
    from snapfs.live.content import _content

    rng = random.Random(1)
    for _ in range(2000):
        kind, ino, a, b = rng.choice(list(IntentKind)), rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(64)
        assert _content.pack_record(kind, ino, a, b) == record(kind, ino, a, b)


def test_dirty_maps_are_the_same() -> None:
    from snapfs.live.content import _content

    rng = random.Random(2)
    for _ in range(300):
        maps = [DirtyMap(), _content.DirtyMap()]
        others = [DirtyMap(), _content.DirtyMap()]
        for _ in range(rng.randrange(30)):
            offset, length, which = rng.randrange(60 * CHUNK_SIZE), rng.randrange(1, 4 * CHUNK_SIZE), rng.random()
            pair = others if rng.random() < 0.3 else maps
            if which < 0.8:
                assert pair[0].mark(offset, length) == pair[1].mark(offset, length)
            elif which < 0.97:
                for each in pair:
                    each.lower(offset // CHUNK_SIZE, length // CHUNK_SIZE + 20)
            elif which < 0.98:
                for each in pair:
                    each.mark_whole()
            assert pair[0].has(offset // 2, length) == pair[1].has(offset // 2, length)
            assert pair[0].covers(offset // CHUNK_SIZE) == pair[1].covers(offset // CHUNK_SIZE)
        for one, other in zip(maps, others, strict=True):
            one.join(other)
            one.check_invariants()
        assert described(maps[0]) == described(maps[1])
        assert maps[0].listed_chunks() == maps[1].listed_chunks()
