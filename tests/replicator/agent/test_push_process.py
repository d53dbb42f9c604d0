"""The pushing side as processes: an agent, a mirror, a link between them that misbehaves, kills at any time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.commands.target_commands import mark_new
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.agent_process import AgentProcess, assert_mirrored, bad_times, facts_of
from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess


def push(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*REPLICATOR, "push", "--log-format", "json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def status(volume: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [*REPLICATOR, "status", "--json", *more, str(volume)], capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode in (0, 8), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["volumes"][0]
    return found


def newest(volume: Path) -> list[int | None]:
    return [target["newest"] for target in facts_of(volume).get("targets", [])]


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
        if urls:
            mark_new(str(tmp_path / "source"), ())
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


def test_once_to_two_targets_and_what_status_shows(
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
    assert {target["state"] for target in status(source.path)["targets"]} == {"stale"}  # no agent keeps them so
    facts = status(source.path, "--max-age", "1h")
    assert facts["ok"]
    assert [target["newest"] for target in facts["targets"]] == [5, 5]
    assert all(target["lag_s"] == 0 and target["link"] == "idle" for target in facts["targets"])
    words = [*REPLICATOR, "status", "--max-age", "1h", str(source.path)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True)
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
        eventually(lambda number=number: newest(source.path) == [number], f"snapshot {number}")
    eventually(lambda: agent.get("/readyz")[0] == 200, "readiness")
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
    eventually(lambda: newest(source.path) == [1, 1], "the first snapshot")
    mirror.kill()
    for _ in range(6):
        source.grow(1)
    eventually(lambda: newest(source.path) == [1, 7], "the other target")
    eventually(lambda: facts_of(source.path)["targets"][0]["link"] == "waiting", "the word that it waits")
    assert facts_of(source.path)["targets"][0]["lag_s"] > 0
    mirror.start()
    eventually(
        lambda: [target["snapshots"] for target in facts_of(source.path)["targets"]] == [7, 7],
        "everything, history too",
    )
    assert_mirrored(source, mirror.root / "pg")
    assert_mirrored(source, tmp_path / "copy")


@pytest.mark.parametrize("seed", range(2))
def test_kills_and_a_bad_link_only_delay(tmp_path: Path, seed: int) -> None:
    """The long form is tools/chaos/replication."""
    bad_times(tmp_path, seed, 14, encrypted=seed % 2 == 1)


def test_a_volume_may_come_later_and_change_its_targets(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], tmp_path: Path
) -> None:
    agent = start_agent(tmp_path / "source")

    def unready() -> bool:
        try:
            code, facts_of = agent.get("/readyz")
        except OSError:
            return False
        return code == 503 and b"a volume that you may write to" in facts_of

    eventually(unready, "the word that there is no volume")
    source = make_source(f"file://{tmp_path}/one")
    source.grow(3)
    eventually(lambda: newest(source.path) == [3], "the first target")
    toml = source.path / "volume.toml"
    toml.write_text(toml.read_text() + f'[[replication.target]]\nurl = "file://{tmp_path}/two"\nname = "two"\n')
    mark_new(str(source.path), ["two"])
    eventually(lambda: newest(source.path) == [3, 3], "the second target")
    eventually(lambda: [target["snapshots"] for target in facts_of(source.path)["targets"]] == [3, 3], "its history")
    agent.end(signal.SIGTERM)
    for name in ("one", "two"):
        assert_mirrored(source, tmp_path / name)


def test_a_volume_that_was_made_anew_is_another_one(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], tmp_path: Path
) -> None:
    """The same folder, the same settings, another id."""
    source = make_source(f"file://{tmp_path}/target")
    source.grow(2)
    start_agent(source.path)
    eventually(lambda: newest(source.path) == [2], "the first volume's snapshots")
    eventually(lambda: [target["link"] for target in facts_of(source.path)["targets"]] == ["idle"], "the end of that")
    shutil.move(source.path, tmp_path / "old")
    shutil.move(tmp_path / "target", tmp_path / "old-target")
    other = make_source(f"file://{tmp_path}/target", seed=4)
    other.grow(1)
    eventually(lambda: facts_of(other.path).get("volume_id") == other.identity.volume_id, "the other volume's status")
    eventually(lambda: newest(other.path) == [1], "the other volume's snapshot")
    assert_mirrored(other, tmp_path / "target")
    assert_mirrored(source, tmp_path / "old-target")


def checked(volume: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `status`, and the only target."""
    words = [*REPLICATOR, "status", "--json", *more, str(volume)]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE_S)
    (facts_of,) = json.loads(done.stdout)["volumes"][0]["targets"]
    return done.returncode, facts_of


def test_status_with_a_dead_agent_and_missing_snapshots_is_not_fine(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], tmp_path: Path
) -> None:
    """It reported 'idle, up to date, lag 0', exit code 0."""
    source = make_source(f"file://{tmp_path}/copy")
    source.grow(2)
    code, target = checked(source.path)
    assert (code, target["state"], target["missing"]) == (8, "never", 2)
    agent = start_agent(source.path)
    eventually(lambda: checked(source.path)[0] == 0, "the target has everything")
    assert checked(source.path)[1]["state"] == "current"
    metrics = agent.get("/metrics")[1].decode()
    assert f'snapfs_replicator_state{{state="current",target="{target["name"]}",volume="{source.path}"}} 1.0' in metrics
    agent.end()
    source.grow(3)
    code, target = checked(source.path)  # at once: that its process is gone is known before its word is old
    assert (code, target["state"], target["missing"], target["link"]) == (8, "stale", 3, "unknown")
    assert target["lag_s"] > 0
    shown = subprocess.run([*REPLICATOR, "status", str(source.path)], capture_output=True, text=True, check=False)
    assert shown.returncode == 8
    assert "no agent is running; its last report is" in shown.stdout
    assert "lacks 3 snapshots" in shown.stdout
    assert "up to date" not in shown.stdout
    assert checked(source.path, "--max-age", "1h", "--max-lag", "99999d")[0] == 0


def test_status_of_a_target_that_was_never_reached_is_not_fine(
    make_source: Callable[..., SourceVolume], start_agent: Callable[[Path], AgentProcess], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("snapfs_00000000_x")
    source = make_source("http://127.0.0.1:9/pg")
    source.grow(2)
    agent = start_agent(source.path)
    eventually(
        lambda: bool(facts_of(source.path)) and facts_of(source.path)["targets"][0]["last_error"] is not None,
        "an attempt",
    )
    code, target = checked(source.path, "--max-lag", "99999d")
    assert (code, target["state"], target["missing"]) == (8, "never", 2)
    assert target["lag_s"] > 0
    assert facts_of(source.path)["targets"][0]["lag_s"] > 0  # the agent's own report has it as well
    assert 'snapfs_replicator_state{state="never"' in agent.get("/metrics")[1].decode()


def test_status_keeps_what_a_target_acknowledged_when_an_agent_starts_without_it(
    make_source: Callable[..., SourceVolume], mirror: MirrorProcess, tmp_path: Path
) -> None:
    """It printed 'it has nothing; lacks 3 snapshots' of a mirror that two had been acknowledged by."""
    source = make_source(f"http://127.0.0.1:{mirror.port}/pg")
    source.grow(2)
    assert push("--once", str(source.path)).returncode == 0
    mirror.kill()
    source.grow(1)
    for _ in range(2):  # the second knows it from the first, which had no answer either
        assert push("--once", str(source.path)).returncode == 3
        code, target = checked(source.path, "--max-age", "1h")
        assert (code, target["state"], target["missing"]) == (8, "unreachable", 1)
        assert (target["newest"], target["had"]) == (None, 2)
        shown = subprocess.run([*REPLICATOR, "status", str(source.path)], capture_output=True, text=True, check=False)
        assert "it had snapshot 2" in shown.stdout
        assert "nothing" not in shown.stdout
    mirror.start()
    assert push("--once", str(source.path)).returncode == 0
    assert (checked(source.path)[1]["newest"], checked(source.path)[1]["had"]) == (3, 0)


def test_status_of_a_target_that_fenced_us_shows_what_it_has(
    make_source: Callable[..., SourceVolume], mirror: MirrorProcess, tmp_path: Path
) -> None:
    """It printed 'it has nothing; lacks 3 snapshots', to a writer that was fenced off after two were acknowledged."""
    url = f"http://127.0.0.1:{mirror.port}/pg"
    source = make_source(url)
    source.grow(2)
    assert push("--once", str(source.path)).returncode == 0
    subprocess.run(
        [*REPLICATOR, "promote", url, "--token-file", str(tmp_path / "token")], check=True, timeout=PATIENCE_S
    )
    source.grow(1)
    assert push("--once", str(source.path)).returncode == 3
    code, target = checked(source.path)
    assert (code, target["state"], target["newest"], target["missing"]) == (8, "fenced", 2, 1)


def test_status_does_not_show_a_target_without_an_answer_as_empty(
    make_source: Callable[..., SourceVolume], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("snapfs_00000000_x")
    source = make_source("http://127.0.0.1:9/pg")
    source.grow(1)
    push("--once", str(source.path))
    shown = subprocess.run([*REPLICATOR, "status", str(source.path)], capture_output=True, text=True, check=False)
    assert "never reached what it has is not known; lacks 1 snapshots" in shown.stdout


def test_status_without_a_target_is_not_fine(make_source: Callable[..., SourceVolume]) -> None:
    source = make_source()
    shown = subprocess.run([*REPLICATOR, "status", str(source.path)], capture_output=True, text=True, check=False)
    assert (shown.returncode, "no [[replication.target]]" in shown.stdout) == (8, True)
