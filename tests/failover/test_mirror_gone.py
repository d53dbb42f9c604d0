"""A mount whose mirrors go away one after the other, and come back: what it answers, and that it goes on by itself."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

from snapfs.base.blocks import CHUNK_SIZE as CHUNK
from tests.conftest import Mounted, run_snapfs
from tests.fakes.mounts.hydrated import wait_whole
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess

CHUNKS = 48


@pytest.fixture
def mirrors(tmp_path: Path) -> Iterator[list[MirrorProcess]]:
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        made.append(MirrorProcess(tmp_path / name / "root"))
        made[-1].start()
    yield made
    for each in made:
        each.stop()


def push(volume: Path, mirrors: list[MirrorProcess]) -> list[str]:
    """Push to each of them; returns the options to mount from there."""
    path, targets, places = volume / "volume.toml", tomlkit.aot(), list[str]()
    for number, mirror in enumerate(mirrors):
        token = volume.parent / "token"
        mirror.admin = mirrors[0].admin
        (mirror.root / "tokens.json").write_bytes((mirrors[0].root / "tokens.json").read_bytes())
        token.write_text(mirror.admin)
        url = f"http://127.0.0.1:{mirror.port}/pg"
        target = tomlkit.table()
        target.update({"name": f"mirror-{number}", "url": url, "token_file": str(token)})
        targets.append(target)
        places += ["--from", url]
    document = tomlkit.parse(path.read_text())
    document.setdefault("replication", tomlkit.table())
    document["replication"]["target"] = targets  # type: ignore[index]
    path.write_text(tomlkit.dumps(document))
    command = [*REPLICATOR, "push", "--once", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return [*places, "--token-file", str(volume.parent / "token")]


def chunk_of(path: Path, index: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, CHUNK, index * CHUNK)
    finally:
        os.close(fd)


def is_chunk(path: Path, index: int, content: bytes) -> bool:
    try:
        return chunk_of(path, index) == content[index * CHUNK : (index + 1) * CHUNK]
    except OSError:
        return False


def test_mirrors_that_go_away(mounted: Mounted, mirrors: list[MirrorProcess], tmp_path: Path, other: Path) -> None:
    """One is enough; without any, reads wait as long as they may, and fail; then all goes on without a word from us."""
    content = random.Random(3).randbytes(CHUNKS * CHUNK)
    (mounted.path / "big").write_bytes(content)
    mounted.snapshot()
    places = push(mounted.volume, mirrors)
    options = ("-o", "hydration.background=false,hydration.wait=700ms")
    run_snapfs("mount", *options, *places, tmp_path / "new", other)
    lazy, big = Mounted(tmp_path / "new", other), other / "big"
    mirrors[0].kill()
    assert chunk_of(big, 3) == content[3 * CHUNK : 4 * CHUNK]
    mirrors[1].kill()
    started = time.monotonic()
    with pytest.raises(OSError, match="Input/output"):
        chunk_of(big, 20)
    assert time.monotonic() - started >= 0.7
    assert chunk_of(big, 3) == content[3 * CHUNK : 4 * CHUNK]
    with pytest.raises(OSError, match="Input/output"), open(big, "r+b", buffering=0) as file:
        file.seek(30 * CHUNK + 5)
        file.write(b"half of a chunk that is not here")
        os.fsync(file.fileno())
    with open(big, "r+b", buffering=0) as file:  # a whole one needs nothing from elsewhere
        file.seek(31 * CHUNK)
        file.write(b"w" * CHUNK)
        os.fsync(file.fileno())
    lazy.command("resume")
    eventually(lambda: lazy.status()["hydration"]["last_error"] is not None, "its error")
    lazy.command("pause")
    assert lazy.status()["hydration"]["paused"]
    lazy.command("resume")
    mirrors[1].start()
    eventually(lambda: is_chunk(big, 20, content), "an answer within the time that a read waits")
    with open(big, "r+b", buffering=0) as file:
        file.seek(40 * CHUNK + 5)
        file.write(b"half")
        os.fsync(file.fileno())
    wait_whole(lazy)
    mirrors[1].kill()
    found = bytearray(content)
    found[31 * CHUNK : 32 * CHUNK] = b"w" * CHUNK
    found[40 * CHUNK + 5 : 40 * CHUNK + 9] = b"half"
    assert big.read_bytes() == bytes(found)


def test_a_damaged_newest_snapshot_of_a_mirror_is_passed_over(
    mounted: Mounted, mirrors: list[MirrorProcess], tmp_path: Path, other: Path
) -> None:
    (mounted.path / "file").write_bytes(b"old")
    mounted.snapshot("good")
    push(mounted.volume, mirrors[:1])
    (mounted.path / "file").write_bytes(b"new")
    mounted.snapshot("bad")
    before = set((mirrors[0].root / "pg" / "store" / "segments").iterdir())
    places = push(mounted.volume, mirrors[:1])
    (newest,) = set((mirrors[0].root / "pg" / "store" / "segments").iterdir()) - before
    data = bytearray(newest.read_bytes())
    for place in range(64, len(data) - 500):
        data[place] ^= 0x55
    newest.write_bytes(data)
    done = run_snapfs("mount", *places, tmp_path / "new", other)
    assert "snapshot 1 good" in done.stderr
    assert " s old" in done.stderr
    assert "snapshot 2" in done.stderr
    assert (other / "file").read_bytes() == b"old"
