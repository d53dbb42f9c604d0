"""What encryption costs: the cipher by itself, and a push to a mirror with and without it, in turns.

`tools/bench/encryption.py [--mib 256] [--rounds 3] [--json]` seals and opens chunks and small differences on one core
(MB/s), then pushes one volume (half of it compressible) to a fresh mirror process over the loopback, as it is and
encrypted, round after round: MB/s of both, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import xxhash

from replicator.feeder import Feeder
from replicator.security import Tokens
from replicator.source import Source, as_it_is
from replicator.status import TargetStatus
from replicator.targets.base import Target
from replicator.targets.http import HttpTarget
from replicator.targets.sealed import SealedTarget
from replicator.volume_keys import VolumeKeys
from snapfs.access import MirrorAccess
from snapfs.blocks import Disk, Number
from snapfs.config import EncryptionSettings, ReplicationSettings
from snapfs.store import format as fmt
from snapfs.store.format import Encoding, Kind, Row
from snapfs.store.keys import Keyring
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import Repository
from snapfs.store.sealing import Sealer
from snapfs.store.stream import Item
from snapfs.volume import Volume
from tools.bench.mirror_push import fill


def cipher(size: int, seconds: float = 0.7) -> dict[str, float]:
    """MB/s and µs an object, of payloads of `size` bytes, on one core."""
    sealer, rng = Sealer(Keyring.create("ab" * 16, 7)), random.Random(1)
    objects = []
    for number in range(1, 200):
        plain = rng.randbytes(size)
        framed = fmt.pack_frame(number, 0, Kind.CHUNK, Encoding.RAW, 0, size, plain) + plain
        row = Row(Number(number), 0, Kind.CHUNK, Encoding.RAW, 0, size, Number(0), xxhash.xxh3_128_digest(plain, 7))
        objects.append((row, framed))
    found: dict[str, float] = {"bytes": size}
    sealed = [sealer.seal(*each) for each in objects]
    items = [Item(row.proof, fmt.unpack_frame(framed), framed) for row, framed in sealed]
    for name, work in (
        ("seal", lambda: [sealer.seal(*each) for each in objects]),
        ("open", lambda: [sealer.open(item, "there") for item in items]),
    ):
        count, started = 0, time.process_time()
        while (took := time.process_time() - started) < seconds:
            work()
            count += len(objects)
        found[f"{name}_us"] = round(took / count * 1e6, 2)
        found[f"{name}_mb_s"] = round(count * size / took / 1e6)
    return found


def pushed(volume: Volume, root: Path, encrypted: bool) -> float:
    """Seconds that a push of everything to a fresh mirror takes."""
    root.mkdir()
    token = root / "token"
    token.write_text(Tokens(str(root / "tokens.json")).create({"*": "admin"})[1])
    command = [sys.executable, "-m", "replicator.cli", "serve", "--root", str(root), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as mirror:
        assert mirror.stdout is not None
        port = re.findall(r":(\d+)$", mirror.stdout.readline().strip())[0]
        try:
            return asyncio.run(_push(volume, f"http://127.0.0.1:{port}/pg", str(token), encrypted))
        finally:
            mirror.terminate()


async def _push(volume: Volume, url: str, token: str, encrypted: bool) -> float:
    target: Target = HttpTarget(url, MirrorAccess(token))
    stage = as_it_is
    if encrypted:
        settings = EncryptionSettings(key_command="echo a passphrase for a benchmark")
        keys = VolumeKeys(volume.path, settings, volume.volume_id, volume.seed, Disk())
        target, stage = SealedTarget(HttpTarget(url, MirrorAccess(token)), keys, url), keys.stage
    source = Source(volume.path, Disk(), stage)
    made = Feeder(
        source, target, TargetStatus("bench", url), ReplicationSettings(), "bench", changed=lambda urgent: None
    )
    started = time.monotonic()
    await made.run_once()
    took = time.monotonic() - started
    await made.close()
    return took


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mib", type=int, default=256)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--dir", default=None, help="where to work; default: the folder for temporary files")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    facts: dict[str, object] = {"cipher": [cipher(size) for size in (48 << 10, 4096, 250)]}
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        volume = Volume.create(f"{folder}/volume", Disk())
        identity = StoreIdentity(volume.volume_id, volume.seed)
        repository = Repository.create(volume.store_dir, identity, Disk())
        fill(repository, given.mib)
        size = sum(info.size for info in repository.index.segments())
        repository.close()
        rounds = [
            (pushed(volume, Path(folder) / f"plain{at}", False), pushed(volume, Path(folder) / f"sealed{at}", True))
            for at in range(given.rounds)
        ]
    facts["bytes"] = size
    facts["plain_mb_s"] = [round(size / plain / 1e6) for plain, _ in rounds]
    facts["sealed_mb_s"] = [round(size / sealed / 1e6) for _, sealed in rounds]
    facts["ratio"] = round(statistics.median(plain / sealed for plain, sealed in rounds), 2)
    print(json.dumps(facts) if given.json else "\n".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
