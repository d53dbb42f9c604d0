"""An agent as a process of its own, and the story of a replication in which everything goes wrong."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repair import verify
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.table_pages import ObjectReader
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.bad_link import BadLink, Badness
from tests.fakes.targets.decrypted_store import opened
from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess
from tests.fakes.targets.ports import free_port

until = eventually  # its name here before there was one for all tests


class AgentProcess:
    """An agent of one volume."""

    def __init__(self, volume: Path) -> None:
        self.volume, self.port = volume, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*REPLICATOR, "agent", str(self.volume), "--listen", f"127.0.0.1:{self.port}", "--log-format", "json"]
        with open(self.volume.parent / "agent.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGKILL) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(PATIENCE_S)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It finds out nothing meanwhile (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def log(self) -> str:
        return (self.volume.parent / "agent.log").read_text()


def facts_of(volume: Path) -> dict[str, Any]:
    """replication.json, {} while there is none."""
    try:
        found: dict[str, Any] = json.loads((volume / "replication.json").read_bytes())
        return found
    except FileNotFoundError:
        return {}


def assert_mirrored(source: SourceVolume, folder: Path, numbers: list[int] | None = None) -> None:
    """The mirror's folder holds these snapshots (None: all), each as it was made."""
    volume = Volume.open(str(folder), Disk())
    identity = StoreIdentity(volume.volume_id, volume.seed, volume.holds_ciphertext)
    repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True, cache_bytes=1 << 20)
    reader: ObjectReader = repository
    if volume.holds_ciphertext:
        assert source.keys is not None
        reader = opened(repository.index, source.keys.encryptor, source.identity.seed)
        assert verify.verify(repository, repository.snapshots()).is_whole
    try:
        wanted = numbers or [record.number for record in source.records]
        assert [record.number for record in repository.snapshots()] == wanted
        for number in wanted:
            source.assert_equal(reader, number)
    finally:
        repository.close()


def bad_times(folder: Path, seed: int, snapshots: int, *, encrypted: bool = False) -> dict[str, int]:
    """Replicate a history while both ends are killed and the link misbehaves; everything arrives. What happened.

    The history, and what is done when, follow from the seed; what meets what is up to the machine.
    """
    rng = random.Random(seed)
    bad = Badness(cut=0.1, lose_answer=0.1, corrupt=0.1, duplicate=0.1, reorder=0.1, bytes_per_s=50e6)
    mirror = MirrorProcess(folder / "root")
    mirror.start()
    (folder / "token").write_text(mirror.admin)
    with BadLink(mirror.port, seed, bad).running() as link:
        target = {"url": f"http://127.0.0.1:{link.port}/pg", "name": "t0", "token_file": str(folder / "token")}
        settings: dict[str, object] = {"target": [target]}
        if encrypted:
            settings["encryption"] = {"key_file": str(folder / "owners.key")}
        source = SourceVolume(folder / "source", seed, settings)
        if encrypted:
            source.encrypt()
        agent = AgentProcess(source.path)
        agent.start()
        try:
            for _ in range(snapshots):
                source.grow(1, steps=rng.choice([3, 30]))
                _something_happens(rng, agent, mirror, link, bad)
            link.badness = Badness()
            eventually(lambda: _counts(source.path) == [snapshots], "all of it")
            assert agent.end(signal.SIGTERM) == 0
            mirror.stop()
            assert_mirrored(source, mirror.root / "pg")
        finally:
            agent.end()
            mirror.kill()
            source.close()
    return dict(link.done)


def _counts(volume: Path) -> list[int]:
    return [target["snapshots"] for target in facts_of(volume).get("targets", [])]


def _something_happens(
    rng: random.Random, agent: AgentProcess, mirror: MirrorProcess, link: BadLink, bad: Badness
) -> None:
    match rng.randrange(8):
        case 0:
            agent.end()
            agent.start()
            link.done["agent killed"] += 1
        case 1:
            mirror.kill()
            mirror.start()
            link.done["mirror killed"] += 1
        case 2:
            link.badness = Badness(down=True)
            time.sleep(rng.random() / 2)
            link.badness = bad
            link.done["down"] += 1
        case _:
            time.sleep(rng.random() / 3)
