"""The live tree and its cuts against a model that remembers everything, driven by a seed.

Nothing of the store and no mount: a simulated sealer keeps "snapshots" as plain bytes, made in the one way a sealer may
make them: the last snapshot's bytes, with the chunks that a `FrozenFile` calls dirty read anew. So a snapshot that
equals the model at its cut shows both that frozen bytes are right and that no change was left out.

The sealer advances between the steps, a file or a chunk at a time, so that cuts stay open for long. Lives end by
an orderly close, by a kill (the folder is copied and the copy opened), or by a kill and another boot id.

The router changes names where it may, unless "names in Python". A kill is followed by the question whether each
answered change is known.

SNAPFS_MODEL_SEEDS="7 8 9" or "100-200" and SNAPFS_MODEL_STEPS=20000 select a longer form.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.content.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.namespace.reply_cache import RESENT
from snapfs.live.tree import LiveTree
from snapfs.live.writer.kernel_clock import kernel_time_ns

pytestmark = pytest.mark.parametrize("data_path", ["python", "native", "native, names in Python"], indirect=True)

NAMES = [f"f{number}".encode() for number in range(14)]
MAX_SIZE = 24 * CHUNK_SIZE
MIX = {
    "write": 40, "append": 10, "big_write": 4, "truncate": 8, "create": 5, "unlink": 3, "rename": 4, "link": 2,
    "chmod": 2, "times": 3, "fsync": 3, "open": 4, "release": 4, "tidy": 3, "sync_soon": 2, "cut": 4, "seal": 60,
    "prepare_truncate": 1, "read": 6, "check": 1, "restart": 0.3, "exchange": 1, "far": 0.5,
    "punch": 3, "zero": 3, "allocate": 2, "copy": 4, "seek": 3,
}  # fmt: skip


def seeds() -> list[int]:
    text = os.environ.get("SNAPFS_MODEL_SEEDS", "1-4")
    found: list[int] = []
    for part in text.split():
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
    return found


STEPS = int(os.environ.get("SNAPFS_MODEL_STEPS", "2500"))


class FlakyDisk(Disk):
    """Fails a preserve or an intent now and then, as a disk that fills up would."""

    def __init__(self, rng: random.Random, rate: float) -> None:
        self.rng, self.rate = rng, rate

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        if label in ("preserve:block", "intents:append") and self.rng.random() < self.rate:
            raise OSError(errno.ENOSPC, label)
        super().pwrite(label, fd, data, offset)

    def link(self, label: str, source: str, target: str) -> None:
        if self.rng.random() < self.rate:
            raise OSError(errno.ENOSPC, label)
        super().link(label, source, target)


@dataclass
class ModelFile:
    data: bytearray = field(default_factory=bytearray)
    mtime_ns: int = 0
    nlink: int = 1


@dataclass(frozen=True)
class Image:
    """A file in a snapshot."""

    data: bytes
    mtime_ns: int


@dataclass
class Sealing:
    cut: Cut
    steps: Iterator[None]
    expected: dict[Ino, Image]
    names: dict[bytes, Ino]
    found: dict[Ino, Image] = field(default_factory=dict)


class Run:
    def __init__(self, seed: int, folder: Path, flaky: float, in_c: bool) -> None:
        """`in_c`: names change in C. Their times are the kernel's clock then, not the model's."""
        self.rng = random.Random(seed)
        self.in_c, self.unique = in_c, 0
        self.answers: dict[int, int] = {}
        self.changed_by_c = 0
        self.folder, self.lives, self.boot = folder, 0, 0
        self.flaky = flaky
        self.now_ns = 1_700_000_000_000_000_000
        self.names: dict[bytes, Ino] = {}
        self.files: dict[Ino, ModelFile] = {}
        self.opens: list[Ino] = []
        self.snapshot: dict[Ino, Image] = {}
        self.sealing: Sealing | None = None
        self.counts: dict[str, int] = {}
        self.open_tree()

    # -- lives

    @property
    def live(self) -> Path:
        return self.folder / f"live{self.lives}"

    def clock(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def open_tree(self) -> None:
        self.live.mkdir(exist_ok=True)
        disk = FlakyDisk(self.rng, self.flaky)
        clock = kernel_time_ns if self.in_c else self.clock
        names = Namespace(str(self.live / "namespace.db"), disk, clock)
        self.tree = LiveTree(
            str(self.live), names, disk, boot_id=f"boot-{self.boot}", max_open_files=4, max_states=6, clock=clock,
            native_changes=self.in_c,
        )  # fmt: skip
        self.router = None
        if self.in_c:
            from tests.fakes.mounts.router_names import RouterNames

            self.router = RouterNames(self.tree, self.unique)

    def close_router(self) -> None:
        """The answers to what C changed, which a later life knows."""
        if self.router is not None:
            self.router.close()
            self.answers |= self.router.answers
            self.changed_by_c += len(self.router.answers)
            self.unique = self.router.unique

    def restart(self) -> None:
        self.count("restart")
        kind = self.rng.choice(["clean", "kill", "kill", "power"])
        if self.sealing is not None and kind == "clean":
            self.fail_seal()
        for ino in self.opens:
            self.model_release(ino)
        self.opens.clear()
        if kind == "clean":
            self.close_router()
            self.tree.close()
            self.boot += self.rng.random() < 0.5
        else:
            source = self.live
            self.lives += 1
            subprocess.run(["cp", "-a", "--sparse=always", str(source), str(self.live)], check=True)
            self.abandon()
            subprocess.run(["rm", "-rf", str(source)], check=True)
            self.boot += kind == "power"
        self.open_tree()
        past = self.tree.names.reply_cache.past
        assert {unique: past(RESENT | unique) for unique in self.answers} == self.answers
        self.check_all()

    def abandon(self) -> None:
        """Leave the old life behind without an orderly end; only its descriptors are closed."""
        if self.sealing is not None:
            self.sealing.steps.close()  # type: ignore[attr-defined]
            self.sealing.cut.names.close()
            self.sealing = None
        self.close_router()
        self.tree.close(clean=False)

    def finish(self) -> None:
        if self.sealing is not None:
            self.fail_seal()
        self.cut()
        while self.sealing is not None:
            self.seal()
        self.close_router()
        self.tree.close()

    # -- steps

    def step(self) -> None:
        name = self.rng.choices(list(MIX), list(MIX.values()))[0]
        getattr(self, name)()

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def expect_full_disk(self, failure: OSError) -> None:
        if failure.errno != errno.ENOSPC or not self.flaky:
            raise failure
        self.count("enospc")

    def any_file(self) -> Ino | None:
        known = sorted({*self.names.values(), *self.opens})
        return self.rng.choice(known) if known else None

    def write_at(self, ino: Ino, offset: int, length: int) -> None:
        file = self.files[ino]
        data = self.rng.randbytes(length) if self.rng.random() < 0.9 else bytes(length)
        try:
            done = self.tree.write(ino, offset, data)
        except OSError as failure:
            self.expect_full_disk(failure)
            return
        assert done == length
        if len(file.data) < offset:
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset : offset + length] = data
        self.set_mtime(ino, self.clock())

    def set_mtime(self, ino: Ino, mtime_ns: int) -> None:
        try:
            self.tree.setattr(ino, mtime_ns=mtime_ns, ctime_ns=self.clock())
        except OSError as failure:
            self.expect_full_disk(failure)
        else:
            self.files[ino].mtime_ns = mtime_ns

    def write(self) -> None:
        ino = self.any_file()
        if ino is not None:
            size = len(self.files[ino].data)
            offset = self.rng.randrange(min(size + 5000, MAX_SIZE))
            self.write_at(ino, offset, self.rng.choice([1, 100, 4096, 5000, 20000]))

    def append(self) -> None:
        ino = self.any_file()
        if ino is not None and len(self.files[ino].data) < MAX_SIZE:
            self.write_at(ino, len(self.files[ino].data), self.rng.choice([10, 128, 4096, 8192]))

    def big_write(self) -> None:
        ino = self.any_file()
        if ino is not None:
            chunk = self.rng.randrange(MAX_SIZE // CHUNK_SIZE)
            self.write_at(ino, chunk * CHUNK_SIZE, self.rng.randrange(1, 5) * CHUNK_SIZE)

    def far(self) -> None:
        """A sparse jump within bounds the model can hold."""
        ino = self.any_file()
        if ino is not None:
            self.write_at(ino, MAX_SIZE + self.rng.randrange(MAX_SIZE), 10)

    def range_of(self, ino: Ino) -> tuple[int, int]:
        size = len(self.files[ino].data)
        offset = self.rng.choice([0, self.rng.randrange(size + 5000), self.rng.randrange(9) * CHUNK_SIZE])
        return min(offset, MAX_SIZE), self.rng.choice([1, 100, 4096, 30_000, CHUNK_SIZE, 5 * CHUNK_SIZE])

    def fallocate(self, mode: int) -> None:
        ino = self.any_file()
        if ino is None:
            return
        (offset, length), data = self.range_of(ino), self.files[ino].data
        try:
            self.tree.fallocate(ino, mode, offset, length)
        except OSError as failure:
            self.expect_full_disk(failure)
            return
        if not mode & KEEP_SIZE and len(data) < offset + length:
            data.extend(bytes(offset + length - len(data)))
        if mode & ~KEEP_SIZE:
            end = max(min(offset + length, len(data)), offset)
            data[offset:end] = bytes(end - min(offset, len(data))) if offset < len(data) else b""
        self.set_mtime(ino, self.clock())

    def punch(self) -> None:
        self.fallocate(PUNCH_HOLE | KEEP_SIZE)

    def zero(self) -> None:
        self.fallocate(self.rng.choice([ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]))

    def allocate(self) -> None:
        self.fallocate(self.rng.choice([0, KEEP_SIZE]))

    def copy(self) -> None:
        source, ino = self.any_file(), self.any_file()
        if source is None or ino is None:
            return
        (start, length), (offset, _) = self.range_of(source), self.range_of(ino)
        if source == ino and start < offset + length and offset < start + length:
            with pytest.raises(OSError):
                self.tree.copy_range(source, start, ino, offset, length)
            return
        try:
            done = self.tree.copy_range(source, start, ino, offset, length)
        except OSError as failure:
            self.expect_full_disk(failure)
            return
        copied, data = self.files[source].data[start : start + length], self.files[ino].data
        assert done == len(copied)
        if copied:
            data.extend(bytes(max(offset - len(data), 0)))
            data[offset : offset + done] = copied
            self.set_mtime(ino, self.clock())

    def seek(self) -> None:
        ino = self.any_file()
        if ino is None or not self.files[ino].data:
            return
        data, offset = self.files[ino].data, self.rng.randrange(len(self.files[ino].data))
        hole = self.tree.lseek(ino, offset, os.SEEK_HOLE)
        assert offset <= hole <= len(data)
        try:
            found = self.tree.lseek(ino, offset, os.SEEK_DATA)
        except OSError as failure:
            if failure.errno != errno.ENXIO:
                raise
            found = len(data)
        assert not any(data[offset:found])

    def truncate(self) -> None:
        ino = self.any_file()
        if ino is None:
            return
        file = self.files[ino]
        size = self.rng.choice([0, 0, len(file.data), self.rng.randrange(MAX_SIZE), self.rng.randrange(9) * CHUNK_SIZE])
        mtime_ns = self.clock()
        try:
            self.tree.setattr(ino, size=size, mtime_ns=mtime_ns, ctime_ns=mtime_ns)
        except OSError as failure:
            self.expect_full_disk(failure)
            return
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))
        file.mtime_ns = mtime_ns

    def prepare_truncate(self) -> None:
        ino = self.any_file()
        if ino is not None:
            self.tree.prepare_truncate(ino, self.rng.randrange(MAX_SIZE))

    def create(self) -> None:
        name = self.rng.choice(NAMES)
        if name in self.names:
            return
        if self.router is not None:
            self.router.mknod(ROOT_INO, name, stat.S_IFREG | 0o644)
            attr = self.tree.lookup(ROOT_INO, name)
        else:
            attr = self.tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 1, 1)
        self.names[name] = attr.ino
        self.files[attr.ino] = ModelFile(mtime_ns=attr.mtime_ns)

    def unlink(self) -> None:
        if self.names:
            name = self.rng.choice(sorted(self.names))
            (self.router or self.tree).unlink(ROOT_INO, name)
            self.lose(self.names.pop(name))

    def lose(self, ino: Ino) -> None:
        self.files[ino].nlink -= 1
        self.drop_if_gone(ino)

    def drop_if_gone(self, ino: Ino) -> None:
        if self.files[ino].nlink == 0 and ino not in self.opens:
            del self.files[ino]
            self.tree.forget(ino)

    def rename(self) -> None:
        if not self.names:
            return
        old, new = self.rng.choice(sorted(self.names)), self.rng.choice(NAMES)
        (self.router or self.tree).rename(ROOT_INO, old, ROOT_INO, new)
        if old != new and self.names.get(new) != self.names[old]:
            replaced = self.names.get(new)
            self.names[new] = self.names.pop(old)
            if replaced is not None:
                self.lose(replaced)

    def exchange(self) -> None:
        if len(self.names) > 1:
            one, two = self.rng.sample(sorted(self.names), 2)
            self.tree.rename(ROOT_INO, one, ROOT_INO, two, 2)
            self.names[one], self.names[two] = self.names[two], self.names[one]

    def link(self) -> None:
        name = self.rng.choice(NAMES)
        if self.names and name not in self.names:
            ino = self.names[self.rng.choice(sorted(self.names))]
            (self.router or self.tree).link(ino, ROOT_INO, name)
            self.names[name] = ino
            self.files[ino].nlink += 1

    def chmod(self) -> None:
        ino = self.any_file()
        if ino is not None:
            self.tree.setattr(ino, mode=self.rng.randrange(0o777))

    def times(self) -> None:
        ino = self.any_file()
        if ino is not None:
            self.set_mtime(ino, self.rng.randrange(1_000_000_000_000_000_000))

    def fsync(self) -> None:
        ino = self.any_file()
        if ino is not None:
            self.tree.fsync(ino, self.rng.random() < 0.5)

    def open(self) -> None:
        if self.names:
            ino = self.names[self.rng.choice(sorted(self.names))]
            self.tree.open(ino, True)
            self.opens.append(ino)

    def release(self) -> None:
        if self.opens:
            ino = self.opens.pop(self.rng.randrange(len(self.opens)))
            self.tree.release(ino, True)
            self.model_release(ino)

    def model_release(self, ino: Ino) -> None:
        if ino in self.files and self.files[ino].nlink == 0 and self.opens.count(ino) == 0:
            del self.files[ino]
            self.tree.forget(ino)

    def tidy(self) -> None:
        self.tree.tidy()

    def sync_soon(self) -> None:
        self.tree.sync_soon()

    def read(self) -> None:
        ino = self.any_file()
        if ino is not None:
            data = self.files[ino].data
            offset, size = self.rng.randrange(len(data) + 10), self.rng.randrange(1, 100_000)
            found = self.tree.read(ino, offset, size, nowait=True)
            found = self.tree.read(ino, offset, size) if found is None else found
            assert found == data[offset : offset + size]

    def check(self) -> None:
        self.tree.check_invariants()

    def check_all(self) -> None:
        """The tree is what the model is."""
        for ino in {*self.names.values(), *self.opens}:
            file = self.files[ino]
            attr = self.tree.getattr(ino)
            assert (attr.size, attr.nlink) == (len(file.data), file.nlink)
            assert self.tree.read(ino, 0, len(file.data) + 1) == file.data
        listed = {name: attr.ino for _, name, attr in self.tree.readdir(ROOT_INO, 0, 1000)}
        assert listed == self.names
        self.tree.check_invariants()

    # -- cuts

    def cut(self) -> None:
        if self.sealing is not None:
            return
        alive = set(self.names.values())
        expected = {ino: Image(bytes(self.files[ino].data), self.files[ino].mtime_ns) for ino in alive}
        cut = self.tree.cut()
        self.sealing = Sealing(cut, iter(()), expected, dict(self.names))
        self.sealing.steps = self.seal_steps(self.sealing)

    def seal(self) -> None:
        if self.sealing is None:
            return
        if self.rng.random() < 0.005:
            self.fail_seal()
            return
        sealing = self.sealing
        try:
            if next(sealing.steps, sealing) is sealing:
                self.complete_seal(sealing)
        except OSError as failure:
            self.expect_full_disk(failure)
            self.fail_seal()

    def seal_steps(self, sealing: Sealing) -> Iterator[None]:
        cut = sealing.cut
        visits = {*cut.changed_files(), *(ino for ino, _ in cut.names.changed())}
        entries = {name: ino for name, ino, _ in cut.names.entries(ROOT_INO)}
        assert entries == sealing.names
        yield
        for ino in sorted(visits):
            inode = cut.names.inode(ino)
            if inode is None or not stat.S_ISREG(inode.mode):
                assert ino not in sealing.expected
                continue
            yield from self.seal_file(sealing, ino)

    def seal_file(self, sealing: Sealing, ino: Ino) -> Iterator[None]:
        file = sealing.cut.open_file(ino)
        assert file is not None
        try:
            yield
            base = b"" if file.whole or ino not in self.snapshot else self.snapshot[ino].data
            assert file.whole or ino in self.snapshot, "an exact file the last snapshot does not have"
            data = bytearray(base[: file.size].ljust(file.size, b"\0"))
            last = -1
            for chunk, mask in file.dirty_chunks():
                assert chunk > last
                assert mask
                yield
                fresh = file.read_chunk(chunk)
                self.check_mask(data, chunk, mask, fresh, len(base))
                data[chunk * CHUNK_SIZE : chunk * CHUNK_SIZE + len(fresh)] = fresh
                last = chunk
            sealing.found[ino] = Image(bytes(data), file.mtime_ns)
            yield
        finally:
            file.close()

    def check_mask(self, data: bytearray, chunk: int, mask: int, fresh: bytes, known: int) -> None:
        """Blocks that are not in the mask are as they were, where the last snapshot had them."""
        for block in range(16):
            start = chunk * CHUNK_SIZE + block * 4096
            if not mask >> block & 1 and start < known:
                assert data[start : start + 4096] == fresh[block * 4096 : block * 4096 + 4096], (
                    chunk,
                    block,
                    bin(mask),
                )

    def complete_seal(self, sealing: Sealing) -> None:
        merged = {ino: image for ino, image in self.snapshot.items() if ino in sealing.expected} | sealing.found
        assert merged.keys() == sealing.expected.keys()
        assert {name: ino for name, ino, _ in sealing.cut.names.entries(ROOT_INO)} == sealing.names
        for ino, image in sealing.expected.items():
            assert len(merged[ino].data) == len(image.data), ino
            if merged[ino].data != image.data:
                wrong = next(i for i in range(len(image.data)) if merged[ino].data[i] != image.data[i])
                raise AssertionError(f"inode {ino} differs from byte {wrong} of {len(image.data)}")
            if self.lives == 0:  # a kill takes back times that were not applied yet, not those of the bytes
                assert merged[ino].mtime_ns == image.mtime_ns, ino
        self.snapshot = merged
        self.sealing = None
        sealing.cut.finish(True)
        self.count("sealed")

    def fail_seal(self) -> None:
        assert self.sealing is not None
        self.sealing.steps.close()  # type: ignore[attr-defined]
        self.sealing.cut.finish(False)
        self.sealing = None
        self.count("failed")


@pytest.mark.parametrize("flaky", [0.0, 0.03], ids=["steady", "flaky"])
@pytest.mark.parametrize("seed", seeds())
def test_cuts_equal_the_model(seed: int, flaky: float, tmp_path: Path, data_path: str) -> None:
    run = Run(seed, tmp_path, flaky, in_c=data_path == "native" and os.environ.get("SNAPFS_NATIVE_CHANGES") != "0")
    for number in range(STEPS):
        try:
            run.step()
        except Exception as failure:
            failure.add_note(f"seed {seed}, step {number}, {run.counts}")
            raise
    run.finish()
    assert run.counts["sealed"] > STEPS // 400
    assert run.changed_by_c > STEPS // 40 or not run.in_c
