"""The pushing side as processes: an agent, a mirror, a link between them that misbehaves, kills at any time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.blocks import Disk
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import Repository
from snapfs.volume import Volume
from tests.fakes.bad_link import BadLink, Badness
from tests.fakes.mirror_process import REPLICATOR, MirrorProcess
from tests.fakes.pushing import SourceVolume
from tests.fakes.s3_server import free_port


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
        return process.wait(60)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def log(self) -> str:
        return (self.volume.parent / "agent.log").read_text()


def push(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*REPLICATOR, "push", "--log-format", "json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def status(volume: Path) -> dict[str, Any]:
    done = subprocess.run([*REPLICATOR, "status", "--json", str(volume)], capture_output=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)["volumes"][0]
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


def told(volume: Path) -> dict[str, Any]:
    """replication.json, {} while there is none."""
    try:
        found: dict[str, Any] = json.loads((volume / "replication.json").read_bytes())
        return found
    except FileNotFoundError:
        return {}


def newest(volume: Path) -> list[int | None]:
    return [target["newest"] for target in told(volume).get("targets", [])]


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorProcess]:
    made = MirrorProcess(tmp_path / "root")
    made.start()
    (tmp_path / "token").write_text(made.admin)
    yield made
    made.kill()


@pytest.fixture
def make_source(tmp_path: Path) -> Iterator[Callable[..., SourceVolume]]:
    made: list[SourceVolume] = []

    def make(*urls: str, seed: int = 3, **settings: object) -> SourceVolume:
        targets = [{"url": url, "name": f"t{at}", "token_file": str(tmp_path / "token")} for at, url in enumerate(urls)]
        made.append(SourceVolume(tmp_path / "source", seed, {"target": targets, **settings}))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def start_agent() -> Iterator[Callable[[Path], AgentProcess]]:
    agents: list[AgentProcess] = []

    def start(volume: Path) -> AgentProcess:
        agents.append(AgentProcess(volume))
        agents[-1].start()
        return agents[-1]

    yield start
    for agent in agents:
        agent.end()


def assert_mirrored(source: SourceVolume, folder: Path, numbers: list[int] | None = None) -> None:
    volume = Volume.open(str(folder), Disk())
    identity = StoreIdentity(volume.volume_id, volume.seed)
    repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True, cache_bytes=1 << 20)
    try:
        wanted = numbers or [record.number for record in source.records]
        assert [record.number for record in repository.snapshots()] == wanted
        for number in wanted:
            source.assert_equal(repository, number)
    finally:
        repository.close()


def test_once_to_two_targets_and_what_status_says(
    make_source: Callable[..., SourceVolume], mirror: MirrorProcess, tmp_path: Path
) -> None:
    source = make_source(f"http://127.0.0.1:{mirror.port}/pg", f"file://{tmp_path}/copy")
    source.grow(5)
    assert status(source.path)["running"] is False
    for _ in range(2):
        done = push("--once", str(source.path))
        assert done.returncode == 0, done.stderr
    assert_mirrored(source, mirror.root / "pg")
    assert_mirrored(source, tmp_path / "copy")
    facts = status(source.path)
    assert [target["newest"] for target in facts["targets"]] == [5, 5]
    assert all(target["lag_s"] == 0 and target["link"] == "idle" for target in facts["targets"])
    shown = subprocess.run([*REPLICATOR, "status", str(source.path)], capture_output=True, text=True, check=True)
    assert "snapshot 5" in shown.stdout
    assert "up to date" in shown.stdout


@pytest.mark.parametrize(
    ("break_it", "code", "words"),
    [
        (lambda source, root: (root.parent / "token").write_text("snapfs_00000000_x"), 3, "token"),
        (lambda source, root: (root.parent / "token").unlink(), 3, "the token cannot be read"),
    ],
    ids=["a wrong token", "no token"],
)
def test_once_fails_in_one_line(
    make_source: Callable[..., SourceVolume], mirror: MirrorProcess, break_it: Any, code: int, words: str
) -> None:
    source = make_source(f"http://127.0.0.1:{mirror.port}/pg")
    source.grow(1)
    break_it(source, mirror.root)
    done = push("--once", str(source.path))
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_volume_without_targets_is_refused(make_source: Callable[..., SourceVolume]) -> None:
    source = make_source()
    done = push(str(source.path))
    assert done.returncode == 3
    assert "names no target" in done.stderr


def test_an_agent_follows_and_ends_quietly(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], mirror: MirrorProcess
) -> None:
    source = make_source(f"http://127.0.0.1:{mirror.port}/pg")
    agent = start_agent(source.path)
    for number in range(1, 6):
        source.grow(1)
        until(lambda number=number: newest(source.path) == [number], f"snapshot {number}")
    until(lambda: agent.get("/readyz")[0] == 200, "readiness")
    assert agent.get("/healthz")[0] == 200
    metrics = agent.get("/metrics")[1].decode()
    labels = f'{{target="t0",volume="{source.path}"}}'
    assert f"snapfs_replicator_newest_snapshot{labels} 5.0" in metrics
    assert f"snapfs_replicator_delay_seconds_count{labels}" in metrics
    second = push("--once", str(source.path))
    assert second.returncode == 4
    assert "is being replicated already" in second.stderr
    assert agent.end(signal.SIGTERM) == 0
    assert "Traceback" not in agent.log()
    assert_mirrored(source, mirror.root / "pg")


def test_a_mirror_that_is_away_is_waited_for_and_others_are_not_held_up(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], mirror: MirrorProcess,
    tmp_path: Path,
) -> None:  # fmt: skip
    source = make_source(f"http://127.0.0.1:{mirror.port}/pg", f"file://{tmp_path}/copy")
    start_agent(source.path)
    source.grow(1)
    until(lambda: newest(source.path) == [1, 1], "the first snapshot")
    mirror.kill()
    for _ in range(6):
        source.grow(1)
    until(lambda: newest(source.path) == [1, 7], "the other target")
    until(lambda: told(source.path)["targets"][0]["link"] == "waiting", "the word that it waits")
    assert told(source.path)["targets"][0]["lag_s"] > 0
    mirror.start()
    until(lambda: [target["snapshots"] for target in told(source.path)["targets"]] == [7, 7], "everything, history too")
    assert_mirrored(source, mirror.root / "pg")
    assert_mirrored(source, tmp_path / "copy")


@pytest.mark.parametrize("seed", range(2))
def test_kills_and_a_bad_link_only_delay(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], mirror: MirrorProcess,
    seed: int,
) -> None:  # fmt: skip
    """Both ends are killed, the link cuts, slows, corrupts, duplicates and reorders: nothing is lost or mixed up."""
    rng = random.Random(seed)
    bad = Badness(cut=0.1, lose_answer=0.1, corrupt=0.1, duplicate=0.1, reorder=0.1, bytes_per_s=50e6)
    with BadLink(mirror.port, seed, bad).running() as link:
        source = make_source(f"http://127.0.0.1:{link.port}/pg", seed=seed)
        agent = start_agent(source.path)
        for _ in range(14):
            source.grow(1, steps=rng.choice([3, 30]))
            match rng.randrange(8):
                case 0:
                    agent.end()
                    agent.start()
                case 1:
                    mirror.kill()
                    mirror.start()
                case 2:
                    link.badness = Badness(down=True)
                    time.sleep(rng.random() / 2)
                    link.badness = bad
                case _:
                    time.sleep(rng.random() / 3)
        link.badness = Badness()
        until(lambda: [each["snapshots"] for each in told(source.path).get("targets", [])] == [14], "everything", 100)
        agent.end(signal.SIGTERM)
    mirror.stop()
    assert_mirrored(source, mirror.root / "pg")
