"""A takeover through a minority of the targets: the loser's tail is what the winner did not have.

The issue's wording: "B takes over from one that lacks A's newest, which the other acknowledged. The tail is what the
winner did not have; status names the snapshot B went on from; and a takeover reports when a target it could not reach
may know more."
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replicator.source.known_targets import Memory
from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.store.repository.store_folders import LOG
from tests.conftest import Mounted, run_snapfs, take_down
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.targets.mirror_process import MirrorProcess


class Minority:
    """Host A with two mirrors, the second of which alone has A's newest snapshot; B has taken over from the first."""

    def __init__(self, folder: Path, mount: Callable[..., Mounted]) -> None:
        self.folder = folder
        self.mirrors = []
        for name in ("first", "second"):
            (folder / name).mkdir()
            mirror = MirrorProcess(folder / name / "root")
            mirror.start()
            (folder / f"{name}.token").write_text(mirror.admin)
            self.mirrors.append(mirror)
        targets = [
            {"name": name, "url": self.url(at), "token_file": str(folder / f"{name}.token")}
            for at, name in enumerate(("first", "second"))
        ]
        Volume.create(str(folder / "volume"), Disk(), settings={"replication": {"target": targets, "copies": 1}})
        self.a = mount()
        self.agent = AgentProcess(folder / "volume")
        self.b = Mounted(folder / "b", folder / "other")
        self.b.path.mkdir()

    def url(self, at: int) -> str:
        return f"http://127.0.0.1:{self.mirrors[at].port}/pg"

    def work(self) -> None:
        self.agent.start()
        (self.a.path / "file").write_bytes(b"both have it")
        self.a.command(f"snapshot both wait=replicated timeout={PATIENCE_S:.0f}s")
        eventually(
            lambda: all(each["newest"] == 1 for each in self.a.status()["replication"]["targets"]), "both copies"
        )
        self.mirrors[0].kill()
        (self.a.path / "file").write_bytes(b"the second has it")
        self.a.command(f"snapshot acknowledged wait=replicated timeout={PATIENCE_S:.0f}s")
        self.agent.end()
        self.mirrors[0].start()

    def take_over(self, *more: str) -> str:
        token = str(self.folder / "first.token")
        return run_snapfs(
            "mount", "--from", self.url(0), *more, "--token-file", token, self.b.volume, self.b.path
        ).stderr

    def end(self) -> None:
        self.agent.end(signal.SIGKILL)
        take_down(self.b.path)
        for mirror in self.mirrors:
            mirror.stop()


@pytest.fixture
def minority(tmp_path: Path, mount: Callable[..., Mounted]) -> Iterator[Minority]:
    made = Minority(tmp_path, mount)
    yield made
    made.end()


def kept(mounted: Mounted) -> dict[str, Any]:
    eventually(lambda: (mounted.status()["fenced"] or {}).get("branch_kept", False), "the fencing")
    found: dict[str, Any] = mounted.status()["fenced"]
    return found


def test_the_tail_is_what_the_winner_did_not_have(minority: Minority) -> None:
    minority.work()
    minority.take_over()
    minority.agent.start()
    facts = kept(minority.a)
    assert (facts["went_on_from"], facts["branch"]) == (1, "tail-generation-1")
    shown = run_snapfs("status", minority.a.path).stdout
    assert "went on from snapshot 1" in shown
    assert "tail-generation-1" in shown
    assert run_snapfs("drop", minority.a.path, "acknowledged", check=False).returncode == 4
    tail = minority.a.path / ".snapfs" / "snapshots" / "tail-generation-1"
    assert (tail / "file").read_bytes() == b"the second has it"


def test_a_mount_learns_it_from_a_mirror_without_an_agent(minority: Minority) -> None:
    minority.work()
    run_snapfs("umount", minority.a.path)
    minority.take_over()
    run_snapfs("mount", minority.a.volume, minority.a.path)
    facts = kept(minority.a)
    assert "went on from snapshot 1" in (minority.a.volume / "daemon.log").read_text()
    assert (facts["went_on_from"], facts["branch"]) == (1, "tail-generation-1")


def test_a_takeover_says_which_target_may_know_more(minority: Minority) -> None:
    minority.work()
    gone = minority.url(1)
    minority.mirrors[1].kill()
    stderr = minority.take_over("--from", gone, "--force")
    assert "snapshot 1 both" in stderr
    assert f"{gone} " in stderr
    assert "may have newer snapshots, which were acknowledged to the last writer" in stderr
    minority.mirrors[1].start()


def not_asked(mounted: Mounted, event: str = "remounted") -> list[dict[str, Any]]:
    """The peers by the status, which are also those in the log of the volume."""
    facts = mounted.status()["taken_over"]
    lines = (mounted.volume / "store" / LOG).read_bytes().splitlines()
    (line,) = (each for each in lines if f'"{event}"'.encode() in each)
    if facts["not_asked"]:
        assert msgspec.json.encode(facts["not_asked"]) in line
    else:
        assert b"not_asked" not in line
    found: list[dict[str, Any]] = facts["not_asked"]
    return found


def test_a_takeover_names_the_mirror_that_was_never_named_to_it(minority: Minority) -> None:
    """A takeover reports a target that may know more and that was not named."""
    minority.work()
    stderr = minority.take_over()
    gone, holder = minority.url(1), minority.a.volume
    (line,) = (each for each in stderr.splitlines() if "second" in each)
    assert f"second ({gone}), to which " in line
    assert " replicated too, was not queried: it may have snapshots after 1 (cut 20" in line
    assert "Mount --from it, or name it, to be sure" in line
    (peer,) = not_asked(minority.b)
    assert (peer["name"], peer["url"], peer["copies"]) == ("second", gone, 1)
    known = msgspec.json.decode((holder / "targets.json").read_bytes())["targets"]
    assert peer.get("id", "") in {"", *(each["id"] for each in known if each["name"] == "second")}
    shown = run_snapfs("status", minority.b.path).stdout
    assert f"second ({gone}) was not queried: it may have snapshots after 1" in shown
    facts = msgspec.json.decode(run_snapfs("status", "--json", minority.b.path).stdout)
    assert facts["taken_over"]["not_asked"] == [peer]


def test_a_takeover_that_named_all_targets_says_nothing_of_them(minority: Minority) -> None:
    minority.work()
    stderr = minority.take_over("--from", minority.url(1), "--force")  # the other token: it is refused there
    (peer,) = not_asked(minority.b)
    assert peer["url"] == minority.url(1)
    assert peer["why"]
    assert "may have snapshots after" not in stderr
    assert f"{minority.url(1)} (" in stderr


def test_the_former_writer_that_takes_over_again_learns_of_the_other_hosts_target(minority: Minority) -> None:
    """B replicated to a target that A's settings do not name; A's own second mirror is not reached meanwhile."""
    minority.work()
    minority.take_over()
    third = minority.folder / "third"
    urls = {"first": minority.url(0), "third": f"file://{third}"}
    replicate_to(minority.b.volume, urls, minority.folder / "first.token")
    run_snapfs("umount", minority.a.path)
    gone = minority.url(1)
    minority.mirrors[1].kill()
    stderr = run_snapfs("mount", "--take-over", minority.a.volume, minority.a.path).stderr
    assert "generation 3 begins: this host is the writer" in stderr
    (line,) = (each for each in stderr.splitlines() if "third" in each)
    assert f"third (file://{third}), to which " in line
    assert " replicated too, was not queried: it may have snapshots after " in line
    assert f"{gone} (" in stderr
    assert "could not be reached: it may have newer snapshots" in stderr
    found = {each["url"]: each for each in not_asked(minority.a, "taken-over")}
    assert set(found) == {gone, f"file://{third}"}
    assert found[gone]["why"]
    assert len(found[f"file://{third}"]["id"]) == 32
    assert f"third (file://{third}) was not queried" in run_snapfs("status", minority.a.path).stdout
    minority.mirrors[1].start()


def replicate_to(volume: Path, urls: dict[str, str], token: Path) -> None:
    """What the volume has goes to these targets, by name, which become its settings'."""
    with open(volume / "volume.toml", "a") as file:
        for name, url in urls.items():
            file.write(f'\n[[replication.target]]\nname = "{name}"\nurl = "{url}"\ntoken_file = "{token}"\n')
    command = [sys.executable, "-m", "replicator", "push", "--once", "--new", str(volume)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("encrypted", [False, True])
def test_folders_know_of_each_other(tmp_path: Path, mount: Callable[..., Mounted], encrypted: bool) -> None:
    """The same over folders; a folder of an encrypted volume does not learn where the other is."""
    folders = [tmp_path / name for name in ("first", "second")]
    key = tmp_path / "key"
    key.write_text("correct horse battery staple, and more of it")
    key.chmod(0o600)
    replication: dict[str, Any] = {
        "target": [{"name": each.name, "url": f"file://{each}"} for each in folders], "copies": 1,
    }  # fmt: skip
    if encrypted:
        replication["encryption"] = {"key_file": str(key)}
    Volume.create(str(tmp_path / "volume"), Disk(), settings={"replication": replication})
    for each in folders:
        Memory(str(tmp_path / "volume"), Disk(), each.name, f"file://{each}").mark_new()
    a = mount()
    (a.path / "file").write_bytes(b"both have it")
    a.command("snapshot both")
    run_snapfs("umount", a.path)
    subprocess.run(
        [sys.executable, "-m", "replicator", "push", "--once", str(a.volume)], check=True, timeout=PATIENCE_S
    )
    log = (folders[0] / "store" / LOG).read_bytes()
    assert (str(folders[1]).encode() in log, b'"name":"second"' in log) == (not encrypted, not encrypted)
    b = Mounted(tmp_path / "b", tmp_path / "other")
    b.path.mkdir()
    more: list[str | Path] = ["--key-file", key] if encrypted else []
    try:
        stderr = run_snapfs("mount", "--from", folders[0], *more, b.volume, b.path).stderr
        (peer,) = not_asked(b)
        second = msgspec.json.decode((folders[1] / "target.json").read_bytes())["id"]
        called = f"a target (file://, id {second})" if encrypted else f"second (file://{folders[1]})"
        assert peer["id"] == second
        assert f"{called}, to which {peer['by']} replicated too, was not queried" in stderr
        run_snapfs("umount", b.path)
        c = Mounted(tmp_path / "third", b.path)
        stderr = run_snapfs("mount", "--from", folders[0], "--from", folders[1], *more, c.volume, c.path).stderr
        assert not_asked(c) == []
        assert "not queried" not in stderr
    finally:
        take_down(b.path)
