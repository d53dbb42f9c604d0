"""The documented failover, with default settings: what the target had before is there afterwards, names and all.

The issue's wording: "The documented failover deletes the target's history, named snapshots included".
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

from tests.conftest import Mounted, run_snapfs, take_down
from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server, start_obstore

REPLICATOR = [sys.executable, "-m", "replicator"]


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


class Place:
    """A target, as a volume's settings and as the options of `snapfs mount` name it."""

    def __init__(self, url: str, settings: dict[str, object], options: list[str], folder: Path | None) -> None:
        self.url, self._settings, self._options, self._folder = url, {"url": url, **settings}, options, folder

    def configure(self, volume: Path, **rules: int) -> None:
        """`rules`: for this target."""
        document = tomlkit.parse((volume / "volume.toml").read_text())
        target = tomlkit.table()
        target.update({**self._settings, **({"retention": rules} if rules else {})})
        document.setdefault("replication", tomlkit.table())
        document["replication"]["target"] = tomlkit.aot()  # type: ignore[index]
        document["replication"]["target"].append(target)  # type: ignore[index, union-attr]
        (volume / "volume.toml").write_text(tomlkit.dumps(document))

    def take_over(self, volume: Path, place: Path) -> Mounted:
        run_snapfs("mount", *self.source(), volume, place)
        return Mounted(volume, place)

    def options(self) -> list[str]:
        return self._options

    def source(self) -> list[str]:
        return ["--from", self.url.removeprefix("file://"), *self._options]

    def history(self, scratch: Path) -> list[str]:
        """The names, or else numbers, of all that is there."""
        folder = self._folder
        if folder is None:
            folder = scratch / "fetched"
            shutil.rmtree(folder, ignore_errors=True)
            options = {**OPTIONS, **self._settings["options"]}  # type: ignore[dict-item]
            more = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
            replicator("fetch", self.url, folder, *more)
        lines = run_snapfs("list", "--json", folder).stdout
        return [each["name"] or str(each["number"]) for each in json.loads(lines)]


def replicator(*words: str | Path) -> str:
    done = subprocess.run(
        [*REPLICATOR, *map(str, words)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["mirror", "folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        folder = tmp_path / "target"
        return Place(f"file://{folder}", {}, [], folder)
    if request.param == "bucket":
        options = {**OPTIONS, "endpoint": request.getfixturevalue("endpoint")}
        words = [word for name, value in options.items() for word in ("--store-option", f"{name}={value}")]
        return Place(f"s3://{BUCKET}/{tmp_path.name}", {"options": options}, words, None)
    served: MirrorProcess = request.getfixturevalue("mirror")
    token = str(tmp_path / "token")
    url = f"http://127.0.0.1:{served.port}/pg"
    return Place(url, {"token_file": token}, ["--token-file", token], served.root / "pg")


def work(mounted: Mounted, *names: str) -> None:
    for name in names:
        (mounted.path / name).write_bytes(name.encode() * 100)
        mounted.snapshot(name)


def test_a_takeover_leaves_the_targets_history(
    mounted: Mounted, place: Place, tmp_path: Path, other: Path, mountpoint: Path
) -> None:
    """And so does the way back through a standby; what is then dropped by a person is dropped there as well.

    What a person held on the first host is held at the target and on the second host: its rules for the target leave it
    until it is released there, where the snapshot itself never was.
    """
    mounted.snapshot()
    (mounted.path / "one").write_text("of no name")
    mounted.snapshot()
    run_snapfs("hold", "--why", "the audit", mounted.path, "1")
    work(mounted, "one", "two", "three")
    place.configure(mounted.volume)
    replicator("push", "--once", "--new", mounted.volume)
    take_down(mountpoint)
    mounted.volume.rename(tmp_path / "gone")

    second = place.take_over(tmp_path / "b", other)
    place.configure(second.volume, last=1, minimum_good=1)
    work(second, "four")
    replicator("push", "--once", "--new", second.volume)
    assert place.history(tmp_path) == ["1", "one", "two", "three", "four"]
    assert "the audit" in run_snapfs("list", "--json", *place.options(), place.url).stdout
    run_snapfs("release", second.path, "1")
    work(second, "five")
    replicator("push", "--once", "--new", second.volume)
    take_down(other)
    run_snapfs("drop", second.volume, "four")
    replicator("push", "--once", "--new", second.volume)
    assert place.history(tmp_path) == ["one", "two", "three", "five"]

    run_snapfs("standby", "--once", *place.source(), tmp_path / "c")
    run_snapfs("mount", "--force", tmp_path / "c", mountpoint)
    third = Mounted(tmp_path / "c", mountpoint)
    place.configure(third.volume)
    work(third, "six")
    replicator("push", "--once", "--new", third.volume)
    assert place.history(tmp_path) == ["one", "two", "three", "five", "six"]


def dropped_by_policy(volume: Path) -> bool:
    events = map(json.loads, run_snapfs("log", "--json", volume).stdout.splitlines())
    return any(event["kind"] == "dropped" and event["by"] == "policy" for event in events)


def test_the_policy_of_the_host_that_took_over_drops_only_what_it_had(
    mounted: Mounted, place: Place, tmp_path: Path, other: Path
) -> None:
    """`snapshots.keep` after a takeover: the target's older snapshots stay, whatever made them."""
    work(mounted, "one", "two")
    place.configure(mounted.volume)
    replicator("push", "--once", "--new", mounted.volume)
    take_down(mounted.path)
    run_snapfs("mount", *place.source(), "-o", "snapshots.every=200ms", "-o", "snapshots.keep=2", tmp_path / "b", other)
    second = Mounted(tmp_path / "b", other)
    place.configure(second.volume)
    deadline = time.monotonic() + PATIENCE_S
    while not dropped_by_policy(second.volume):
        assert time.monotonic() < deadline
        (other / "file").write_text(f"{time.monotonic()}")
        time.sleep(0.1)
    replicator("push", "--once", "--new", second.volume)
    assert place.history(tmp_path)[:2] == ["one", "two"]
