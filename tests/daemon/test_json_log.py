"""With `--log-format json` whatever a process writes to its log is one JSON object a line. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from replicator.commands.target_commands import mark_new
from snapfs.base.logs import log_output
from snapfs.commands.schemas import schema_files
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess, RefusedError

FORM = jsonschema.Draft202012Validator(schema_files.schema("log-line"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Each line of the log, every one an object of the form that its schema names."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for line in found:
        FORM.validate(line)
    return found


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(log_output.VARIABLE, raising=False)


@pytest.mark.parametrize("how", ["--log-format=json", "-olog_format=json"])
def test_a_mount_logs_objects_that_name_its_volume(mount: Callable[..., Any], how: str) -> None:
    mounted = mount(how)
    mounted.snapshot("one")
    facts = mounted.status()
    os.kill(facts["pid"], signal.SIGKILL)
    eventually(lambda: mounted.status()["pid"] != facts["pid"], "the next daemon")
    mounted.snapshot("two")
    log = lines_of(mounted.volume / "daemon.log")
    said = [line for line in log if "snapshot 2" in line["message"]]
    assert said, log
    assert {line["volume"] for line in log} == {str(mounted.volume)}
    assert {line["level"] for line in said} == {"info"}


def test_the_environment_chooses_and_an_upgrade_keeps_it(
    mount: Callable[..., Any], snapfs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_output.VARIABLE, "json")
    mounted = mount()
    monkeypatch.delenv(log_output.VARIABLE)
    snapfs("upgrade", mounted.path)
    mounted.snapshot()
    log = lines_of(mounted.volume / "daemon.log")
    assert log[-1]["message"].startswith("snapshot 1")


def test_a_mount_logs_text_where_nothing_is_said(mounted: Any) -> None:
    mounted.snapshot()
    last = (mounted.volume / "daemon.log").read_text().splitlines()[-1]
    assert " INFO snapshot 1" in last


def test_a_format_that_is_none_is_refused(snapfs: Any, volume_dir: Path, mountpoint: Path) -> None:
    done = snapfs("mount", "-o", "log_format=xml", volume_dir, mountpoint, check=False)
    assert (done.returncode, done.stderr) == (3, "snapfs: log_format=xml: write one of auto, text, json\n")
    assert not volume_dir.exists()


def test_a_mount_in_the_foreground_that_fails_says_so_in_json(snapfs: Any, tmp_path: Path, mountpoint: Path) -> None:
    volume = tmp_path / "none"
    done = snapfs("mount", "--foreground", "--existing", "--log-format", "json", volume, mountpoint, check=False)
    assert done.returncode == 3
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["logger"], line["volume"]) == ("error", "snapfs", str(volume))
    assert line["message"].startswith(f"there is no volume at {volume}")


def test_a_standby_and_a_push_log_objects(snapfs: Any, tmp_path: Path, mirror: MirrorProcess) -> None:
    source = SourceVolume(
        tmp_path / "source", 3,
        {"target": [{"url": f"http://127.0.0.1:{mirror.port}/pg", "token_file": str(tmp_path / "token")}]},
    )  # fmt: skip
    try:
        mark_new(str(source.path), ())
        source.grow(1, steps=3)
        command = [*REPLICATOR, "push", "--once", "--log-format", "json", str(source.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        pushed = [json.loads(line) for line in done.stderr.splitlines()]
        assert done.returncode == 0
        assert {line["volume"] for line in pushed if line["logger"].startswith("replicator.agent")} == {
            str(source.path)
        }
        folder = tmp_path / "standby"
        place = f"http://127.0.0.1:{mirror.port}/pg"
        done = snapfs(
            "standby", folder, "--from", place, "--token-file", tmp_path / "token", "--once", "--log-format", "json"
        )
        followed = [json.loads(line) for line in done.stderr.splitlines()]
        assert any(line["message"].startswith("snapshot 1") for line in followed)
        assert {line["volume"] for line in followed} == {str(folder)}
    finally:
        source.close()


def test_a_mirror_names_the_volume_of_a_request(mirror: MirrorProcess, tmp_path: Path) -> None:
    client = mirror.client()
    client.create("pg")
    client.claim(1)
    with pytest.raises(RefusedError):
        mirror.client("no such token").request("GET", "/v1/volumes/pg")
    log = lines_of(tmp_path / "mirror.log")
    assert [line["volume"] for line in log if "generation 1" in line["message"]] == ["pg"]
    assert [line["volume"] for line in log if line["level"] == "warning"] == ["pg"]


def test_an_agent_logs_objects_alone(tmp_path: Path) -> None:
    source = SourceVolume(tmp_path / "source", 3, {"target": [{"url": f"file://{tmp_path}/gone/x", "name": "t"}]})
    agent = AgentProcess(source.path)
    log = tmp_path / "agent.log"
    agent.start()
    try:
        source.grow(1, steps=3)
        eventually(lambda: "t: " in log.read_text(), "what the target refuses")
    finally:
        agent.end()
        source.close()
    found = lines_of(log)
    assert any(line["message"].startswith("metrics at http://") for line in found)
    assert [line["volume"] for line in found if line["message"].startswith("t: ")][:1] == [str(source.path)]


def test_a_bug_is_an_exception_of_one_line(tmp_path: Path) -> None:
    program = (
        "import threading, warnings\n"
        "from snapfs.base.logs import log_output\n"
        "log_output.set_up('json', False)\n"
        "warnings.warn('look out')\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='worker')\n"
        "thread.start(); thread.join()\n"
        "raise ValueError('caf\\udce9')\n"
    )
    python = REPLICATOR[0]
    done = subprocess.run([python, "-c", program], capture_output=True, timeout=PATIENCE_S, check=False)
    path = tmp_path / "log"
    path.write_bytes(done.stderr)
    warning, thread, end = lines_of(path)
    assert "look out" in warning["message"]
    assert "worker" in thread["message"]
    assert "ZeroDivisionError" in thread["exception"].splitlines()[-1]
    assert "ValueError" in end["exception"].splitlines()[-1]
    assert end["level"] == "critical"
