"""The third part of the demo: an objective that snapfs keeps by itself, two databases cut at one instant, and the proof
that what the target has recovers in time; then what a retention rule would drop.

An order goes into one database and its item leaves stock in another, on another volume, in this order. Whatever is cut
at one instant over both may lack the second, and never the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SNAPFS = [sys.executable, "-P", "-m", "snapfs"]
REPLICATOR = [sys.executable, "-P", "-m", "replicator"]
NAMES = ("orders", "stock")
RPO, RTO = "2s", "60s"
PATIENCE_S = 60.0


class Shop(threading.Thread):
    """Its client: an order, then the item, each committed and synced, until it is stopped."""

    def __init__(self, folders: list[Path]) -> None:
        super().__init__()
        self.done, self._ended, self._folders = 0, threading.Event(), folders
        self.error: Exception | None = None
        for folder, name in zip(folders, NAMES, strict=True):
            with contextlib.closing(sqlite3.connect(folder / f"{name}.db", isolation_level=None)) as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("CREATE TABLE entry(id INTEGER PRIMARY KEY, text)")

    def run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                open_ = (sqlite3.connect(f / f"{n}.db", isolation_level=None, timeout=30) for f, n in self._pairs())
                databases = [stack.enter_context(contextlib.closing(each)) for each in open_]
                for database in databases:
                    database.execute("PRAGMA synchronous = FULL")
                while not self._ended.is_set():
                    for database in databases:
                        database.execute("INSERT INTO entry VALUES(?, ?)", (self.done + 1, "x" * 400))
                    self.done += 1
        except sqlite3.Error as error:
            self.error = error

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _pairs(self) -> Iterator[tuple[Path, str]]:
        yield from zip(self._folders, NAMES, strict=True)


def run_story(base: Path, seconds: float, claim: Callable[[bool, str], None]) -> None:
    """The story, in `base`. `claim(holds, words)` raises for what does not hold, and prints what does."""
    place = base / "promises"
    place.mkdir(mode=0o755)
    os.environ["SNAPFS_GROUPS"] = str(place / "groups")
    print(f"\nTwo databases on two volumes, with an objective each: rpo = {RPO}, rto = {RTO}.")
    volumes = [make_volume(place, name) for name in NAMES]
    mounts = [place / f"mnt-{name}" for name in NAMES]
    command = [*REPLICATOR, "agent", "--listen", "off", *map(str, volumes)]
    agent = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    shop = Shop(mounts)
    try:
        shop.start()
        keep_the_objective(mounts, claim)
        cut_both(place, volumes, mounts, shop, seconds, claim)
        prove(volumes[0], place, claim)
        would_drop(volumes[0], claim)
    finally:
        shop.stop()
        agent.send_signal(signal.SIGTERM)
        agent.wait(PATIENCE_S)
        for mount in mounts:
            snapfs("umount", mount)
    claim(shop.error is None, f"the client has seen no error over {shop.done} orders")


def make_volume(place: Path, name: str) -> Path:
    """Mounted, with a folder as its target."""
    volume, mount = place / name, place / f"mnt-{name}"
    mount.mkdir()
    snapfs("mount", "-o", f"objectives.rpo={RPO},objectives.rto={RTO}", volume, mount)
    toml = volume / "volume.toml"
    text = toml.read_text().replace('#rto = "off"', f'rto = "{RTO}"').replace('#rpo = "off"', f'rpo = "{RPO}"')
    toml.write_text(f'{text}\n[[replication.target]]\nname = "copy"\nurl = "file://{place}/copy-{name}"\n')
    run(REPLICATOR, "target", "init", volume)
    return volume


def keep_the_objective(mounts: list[Path], claim: Callable[[bool, str], None]) -> None:
    """No snapshot was asked for: the rpo is what makes them."""

    def met() -> bool:
        facts = [json.loads(snapfs("status", mount, "--json").stdout)["objectives"] for mount in mounts]
        return all(each["rpo_state"] == "met" and each["age_s"] for each in facts)

    wait_for(met, "the objective to be met")
    for line in snapfs("status", mounts[0]).stdout.splitlines():
        if line.startswith(("policy", "rpo ", "target")):
            print(f"    {line}")
    claim(True, "cuts are made and replicated so often that the objectives are met")


def cut_both(
    place: Path, volumes: list[Path], mounts: list[Path], shop: Shop, seconds: float, claim: Callable[[bool, str], None]
) -> None:
    print("\nBoth are cut at one instant, while the client works:")
    snapfs("group", "create", "shop", *volumes)
    time.sleep(min(seconds, 2.0))
    before = shop.done
    snapfs("snapshot", "--group", "shop", "evening")
    snapfs("group", "restore", "shop", "evening", place / "evening")
    counts = [count(place / "evening" / name / f"{name}.db") for name in NAMES]
    claim(counts[0] - counts[1] in (0, 1), f"{counts[0]} orders, {counts[1]} items: no item without its order")
    claim(counts[1] >= before, f"and all {before} orders that were acknowledged before the cut are in both")
    claim(all(os.path.ismount(mount) for mount in mounts), "the client goes on")


def prove(volume: Path, place: Path, claim: Callable[[bool, str], None]) -> None:
    print("\nDoes what the target has recover, and how soon? snapfs drill --check sqlite")
    done = snapfs("drill", volume, "--target", "copy", "--check", "sqlite", "--scratch", place)
    for line in done.stdout.splitlines():
        print(f"    {line}")
    claim(": met" in done.stdout, f"the application recovers from the target's newest snapshot within {RTO}")
    gates = {each["number"]: each["gates"] for each in json.loads(snapfs("list", volume, "--json").stdout)}
    claim(any(each["drilled"] and each["drilled"]["passed"] for each in gates.values()), "the log has it: drilled")


def would_drop(volume: Path, claim: Callable[[bool, str], None]) -> None:
    print("\nWhat would the rule `last = 3` drop? snapfs prune --dry-run")
    before = json.loads(snapfs("list", volume, "--json").stdout)
    lines = snapfs("prune", "--dry-run", "-o", "last=3", volume).stdout.splitlines()
    for line in [*lines[:4], *(["..."] if len(lines) > 5 else []), *lines[-1:]]:
        print(f"    {line}")
    now = {each["number"] for each in json.loads(snapfs("list", volume, "--json").stdout)}
    claim({each["number"] for each in before} <= now, "nothing was dropped by that")


def count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            return -1
        return int(database.execute("SELECT count(*) FROM entry").fetchone()[0])


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.2)


def snapfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(SNAPFS, *arguments)


def run(program: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done: Any = subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, arguments))}: {done.returncode} {done.stdout}{done.stderr}"
    found: subprocess.CompletedProcess[str] = done
    return found
