#!/usr/bin/env python3
"""Push throughput of a mirror over the loopback, against a plain copy of the same bytes on the same disk.

`tools/bench/mirror_push.py [--mib 512] [--connections 4] [--json]` makes a store with one snapshot (half of its chunks
compressible, half random), pushes it to a mirror process, and copies the same segments with cp and fsync: MB/s of both,
their ratio, the mirror's CPU seconds for a GB, and its peak memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import environment

if __name__ == "__main__":
    environment.enter()

from replicator.mirror.tokens import Tokens
from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Disk, Generation, Ino, Number
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.format import NULL, Pointer
from snapfs.store.protocol import message_codec, messages, object_stream, wire, wire_fields
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, RootInfo, SnapshotWriter

IDENTITY = StoreIdentity("ab" * 16, 77)
PART_BYTES = 16 << 20


def fill(repository: Repository, mib: int) -> None:
    """One snapshot with a file of so many MiB."""
    rng = random.Random(1)
    words = [rng.randbytes(6) for _ in range(5000)]
    transaction = repository.begin(Generation(1))
    writer = SnapshotWriter(transaction, None)

    def chunks() -> Iterator[tuple[ChunkIndex, Pointer]]:
        for index in range(mib << 4):
            half = b"".join(rng.choices(words, k=CHUNK_SIZE // 6 + 1))[:CHUNK_SIZE]
            plain = half if index & 1 else rng.randbytes(CHUNK_SIZE)
            yield ChunkIndex(index), transaction.append(transaction.encode_chunk(plain, None))

    content, height = writer.update_map(None, mib << 20, chunks())
    listing = writer.update_directory(None, [(b"file", DirEntry(b"file", Ino(2), 8))])
    root = InodeRecord(Ino(1), 0o40755, 0, 0, 2, 0, 0, 0, 0, 0, b"", (), listing, 0)
    file = InodeRecord(Ino(2), 0o100644, 0, 0, 1, 0, mib << 20, 0, 0, 0, b"", (), content, height)
    pointer = writer.finish([(Ino(1), root), (Ino(2), file)], extra=RootInfo(0))
    assert pointer != NULL
    transaction.commit(pointer, parent=None, name=None, cut_time_ns=0, trigger="bench")


def parts(repository: Repository) -> Iterator[list[bytes]]:
    """Streams of about PART_BYTES, each as a list of pieces."""
    items, size = [object_stream.stream_header()], 0
    for info in repository.index.segments():
        reader = repository.index.reader(info.first)
        assert reader is not None
        for row in reader.rows():
            framed = reader.frame(row)
            items.append(object_stream.item_bytes(row, framed))
            size += len(framed)
            if size >= PART_BYTES:
                yield [*items, object_stream.stream_end(len(items) - 1)]
                items, size = [object_stream.stream_header()], 0
    yield [*items, object_stream.stream_end(len(items) - 1)]


class Pusher:
    """Connections to the mirror, one for each thread."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._local = port, threading.local()
        self._headers = {"Authorization": f"Bearer {token}", wire.GENERATION_HEADER: "1", wire.WRITER_HEADER: "bench"}

    def request(self, method: str, path: str, body: bytes | list[bytes]) -> bytes:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        length = len(body) if isinstance(body, bytes) else sum(map(len, body))
        headers = {**self._headers, "Content-Length": str(length)}
        self._local.connection.request(method, path, body, headers)
        answer = self._local.connection.getresponse()
        data: bytes = answer.read()
        assert answer.status == 200, data
        return data


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def copy_seconds(source: Path, target: Path) -> float:
    os.sync()
    started = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.rglob("*"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.monotonic() - started


def measure(folder: Path, mib: int, connections: int) -> dict[str, float]:
    repository = Repository.create(str(folder / "source"), IDENTITY, Disk())
    fill(repository, mib)
    stored = sum(info.size for info in repository.index.segments())
    copying = min(copy_seconds(folder / "source", folder / f"copy{i}") for i in range(2))
    os.sync()
    root = folder / "root"
    root.mkdir()
    token = Tokens(str(root / "tokens.json")).create({"*": "push"})[1]
    command = [sys.executable, "-P", "-m", "replicator", "serve", "--root", str(root), "--listen", "127.0.0.1:0"]
    mirror = subprocess.Popen([*command, "--max-parts", str(2 * connections)], stdout=subprocess.PIPE, text=True)
    try:
        assert mirror.stdout is not None
        pusher = Pusher(int(mirror.stdout.readline().rpartition(":")[2]), token)
        base = wire.volume_path("pg")
        pusher.request(
            "PUT", base, message_codec.encode(messages.CreateVolume(IDENTITY.volume_id, f"{IDENTITY.seed:016x}"))
        )
        pusher.request("POST", f"{base}/claim", message_codec.encode(messages.Claim(1, "bench")))
        idle_bytes, cpu_before = peak_bytes(mirror.pid), cpu_seconds(mirror.pid)
        mine_before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        started = time.monotonic()
        slots = threading.Semaphore(connections + 1)
        with ThreadPoolExecutor(connections) as pool:
            sent = []
            for part in parts(repository):
                slots.acquire()
                sent.append(pool.submit(pusher.request, "POST", f"{base}/parts", part))
                sent[-1].add_done_callback(lambda _: slots.release())
            for future in sent:
                future.result()
        staged = time.monotonic() - started
        records = [wire_fields.encode_record(record) for record in repository.snapshots()]
        pusher.request("POST", f"{base}/commit", message_codec.encode(messages.Commit(records)))
        took = time.monotonic() - started
        cpu = cpu_seconds(mirror.pid) - cpu_before
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_utime - mine_before
        peak = peak_bytes(mirror.pid)
    finally:
        mirror.terminate()
        mirror.wait()
        if mirror.stdout is not None:
            mirror.stdout.close()
        numbers = [Number(info.first) for info in repository.index.segments()]
        repository.close()
    assert numbers
    return {
        "plain_mb": mib * 1.048576,
        "stored_mb": stored / 1e6,
        "copy_mb_per_s": stored / 1e6 / copying,
        "push_mb_per_s": stored / 1e6 / took,
        "ratio": copying / took,
        "commit_s": took - staged,
        "mirror_cpu_s_per_stored_gb": cpu / (stored / 1e9),
        "pusher_cpu_s_per_stored_gb": mine / (stored / 1e9),
        "mirror_idle_mb": idle_bytes / 1e6,
        "mirror_peak_mb": peak / 1e6,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--mib", type=int, default=512)
    arguments.add_argument("--connections", type=int, default=4)
    arguments.add_argument("--dir", default=None)
    arguments.add_argument("--json", action="store_true")
    chosen = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mirror-push-", dir=chosen.dir))
    try:
        facts = measure(folder, chosen.mib, chosen.connections)
    finally:
        shutil.rmtree(folder)
    if chosen.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:28} {value:10.2f}")


if __name__ == "__main__":
    main()
