#!/usr/bin/env python3
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

from tools import environment

if __name__ == "__main__":
    environment.enter()

import xxhash

from replicator.agent.agent_status import TargetStatus
from replicator.agent.feeder import Feeder
from replicator.agent.target_session import TargetRole
from replicator.mirror.tokens import Tokens
from replicator.source.volume_keys import VolumeKeys
from replicator.source.volume_source import VolumeSource, as_it_is
from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.target import Target
from snapfs.base.blocks import Disk, Number
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.settings.replication_settings import EncryptionSettings, ReplicationSettings
from snapfs.base.volumes.volume import Volume
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.crypto.keys import Keyring
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, ObjectKind, Row
from snapfs.store.protocol.object_stream import Item
from snapfs.store.repository.repository import Repository
from tools.bench.mirror_push import fill


def cipher(size: int, seconds: float = 0.7) -> dict[str, float]:
    """MB/s and µs an object, of payloads of `size` bytes, on one core."""
    encryptor, rng = Encryptor(Keyring.create("ab" * 16, 7)), random.Random(1)
    objects = []
    for number in range(1, 200):
        plain = rng.randbytes(size)
        framed = fmt.pack_frame(number, 0, ObjectKind.CHUNK, Encoding.RAW, 0, size, plain) + plain
        row = Row(
            Number(number), 0, ObjectKind.CHUNK, Encoding.RAW, 0, size, Number(0), xxhash.xxh3_128_digest(plain, 7)
        )
        objects.append((row, framed))
    found: dict[str, float] = {"bytes": size}
    sealed = [encryptor.encrypt(*each) for each in objects]
    items = [Item(row.content_hash, fmt.unpack_frame(framed), framed) for row, framed in sealed]
    for name, work in (
        ("seal", lambda: [encryptor.encrypt(*each) for each in objects]),
        ("open", lambda: [encryptor.decrypt(item, "there") for item in items]),
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
    command = [sys.executable, "-P", "-m", "replicator", "serve", "--root", str(root), "--listen", "127.0.0.1:0"]
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
        target, stage = EncryptedTarget(HttpTarget(url, MirrorAccess(token)), keys, url), keys.stage
    source = VolumeSource(volume.path, Disk(), stage)
    made = Feeder(
        source,
        target,
        TargetStatus("bench", url),
        TargetRole(ReplicationSettings(), "bench"),
        changed=lambda urgent: None,
    )
    started = time.monotonic()
    await made.run_once()
    took = time.monotonic() - started
    await made.close()
    return took


def main() -> None:
    options = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
