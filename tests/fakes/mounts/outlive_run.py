"""Runs the application of outlive_app.py on a mount while its daemon is killed, and checks what every snapshot holds.

For the short form in the suite and the long one under tools/chaos.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.mounts import outlive_app
from tests.fakes.patience import PATIENCE_S

ROOT = Path(outlive_app.__file__).parents[3]
PARTS = ("names", "names", "log", "held", "counter", "counter", "stream", "attributes", "commands")
LOG_LINES = 60


@dataclass
class Outcome:
    """What was seen: facts of each part by its folder, deaths of daemons, snapshots checked."""

    parts: dict[str, dict[str, Any]]
    kills: int
    snapshots: int = 0

    @property
    def stall_s(self) -> float:
        """The longest that an operation took; a snapshot by name, which is begun anew after each death, is none."""
        return max(part["stall_s"] for name, part in self.parts.items() if not name.startswith("commands"))

    @property
    def operations(self) -> int:
        return sum(part["operations"] for part in self.parts.values())


def supervisor_facts(volume: Path) -> dict[str, Any]:
    """The supervisor's own words, which take no answer of the mount."""
    facts: dict[str, Any] = json.loads((volume / "supervisor.json").read_text())
    return facts


def kill_daemon(volume: Path) -> bool:
    """SIGKILL the daemon of the moment; whether there was one that served."""
    facts = supervisor_facts(volume)
    if facts["state"] != "serving":
        return False
    try:
        is_dead = Path(f"/proc/{facts['daemon']}/stat").read_text().rpartition(") ")[2].startswith("Z")
        os.kill(facts["daemon"], signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return not is_dead  # its supervisor may still be waking up


def _last_words(volume: Path) -> str:
    """What the daemons have logged last: their deaths have the time of day, as the steps of a part do. And their
    supervisor's status."""
    found = []
    for name in ("daemon.log", "supervisor.json"):
        with contextlib.suppress(OSError):
            found += (volume / name).read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(found)


def run(
    volume: Path, mount: Path, seconds: float, seed: int, strike: Callable[[Path], bool] = kill_daemon,
    pause_s: tuple[float, float] = (0.3, 1.2), at_least: int = 0,
) -> Outcome:  # fmt: skip
    """Run all parts for so long, and on until `at_least` strikes at the daemon have hit: a slow machine takes longer.

    AssertionError with the output of a part, or of what a strike raised, and the end of the daemon's log: nothing of
    the parts is left then, neither a process nor a pipe.
    """
    chance = random.Random(seed)
    parts = Parts(mount, seed)
    try:
        parts.wait_until_begun()
        kills, end_s = 0, time.monotonic() + seconds
        while time.monotonic() < end_s or kills < at_least:
            time.sleep(chance.uniform(*pause_s))
            kills += strike(volume)
        return Outcome(parts.finish(), kills)
    except Exception as failure:
        raise AssertionError(f"seed {seed}: {failure!r}\n{_last_words(volume)}") from failure
    finally:
        parts.close()


class Parts:
    """The processes of the application. Their standard input is a pipe whose end ends them."""

    def __init__(self, mount: Path, seed: int) -> None:
        self._reading, self._writing = os.pipe()
        self._started: dict[str, subprocess.Popen[str]] = {}
        try:
            for number, part in enumerate(PARTS):
                folder = "counter" if part == "counter" else f"{part}-{number}"
                command = [sys.executable, "-m", outlive_app.__name__, part, str(mount / folder), str(seed + number)]
                self._started[f"{folder}/{number}"] = subprocess.Popen(
                    command, cwd=ROOT, stdin=self._reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
        except BaseException:
            self.close()
            raise

    def wait_until_begun(self) -> None:
        for process in self._started.values():
            assert process.stdout is not None
            process.stdout.readline()  # it begins, or has failed: then its words come in `finish`

    def finish(self) -> dict[str, dict[str, Any]]:
        """End them as they end themselves; what each found. AssertionError, subprocess.TimeoutExpired."""
        self._end_input()
        found = {}
        for name, process in self._started.items():
            out, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, f"{name}: {err}"
            found[name] = json.loads(out)
        return found

    def close(self) -> None:
        """Kill those that are left. One that waits for a mount that does not answer is gone when that is taken down."""
        self._end_input()
        for process in self._started.values():
            if process.poll() is None:
                process.kill()
        for process in self._started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PATIENCE_S)
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()

    def _end_input(self) -> None:
        for fd in (self._reading, self._writing):
            if fd >= 0:
                os.close(fd)
        self._reading = self._writing = -1


def check_sums(mount: Path, outcome: Outcome) -> None:
    counted = sum(facts["count"] for name, facts in outcome.parts.items() if name.startswith("counter"))
    assert int((mount / "counter/counter").read_text()) == counted


def check_snapshots(mount: Path, outcome: Outcome, seed: int) -> None:
    """Every snapshot holds each folder of `names` as it was after some number of operations, which never falls."""
    shown = sorted(int(name) for name in os.listdir(mount / ".snapfs/snapshots") if name.isdecimal())
    made = {name for facts in outcome.parts.values() for name in facts.get("made", ())}
    assert made <= set(os.listdir(mount / ".snapfs/snapshots")), "a snapshot that was made is not there"
    for name, facts in outcome.parts.items():
        folder, _, number = name.rpartition("/")
        if folder.startswith("names"):
            _check_names(mount, folder, seed + int(number), facts["count"], shown)
        elif folder.startswith("log"):
            _check_log(mount, folder, facts["count"], shown)
    outcome.snapshots = len(shown)


def _check_names(mount: Path, folder: str, seed: int, count: int, shown: list[int]) -> None:
    possible: dict[frozenset[tuple[str, str]], list[tuple[int, outlive_app.State]]] = {}
    for number, state in enumerate(outlive_app.states(seed, count)):
        key = frozenset((name, kind) for name, (kind, _) in state.items())
        possible.setdefault(key, []).append((number, state))
    reached = 0
    for snapshot in shown:
        place = mount / f".snapfs/snapshots/{snapshot}/{folder}"
        if not place.exists():
            assert reached == 0, f"{folder} is missing in snapshot {snapshot}"
            continue
        found = outlive_app.look(str(place))
        key = frozenset((name, kind) for name, (kind, _) in found.items())
        fitting = [n for n, state in possible.get(key, []) if n >= reached and outlive_app.fits(found, state)]
        assert fitting, f"snapshot {snapshot} holds in {folder} what never was (at or after {reached}): {found}"
        reached = fitting[0]


def _check_log(mount: Path, folder: str, count: int, shown: list[int]) -> None:
    reached = 0
    for snapshot in shown:
        path = mount / f".snapfs/snapshots/{snapshot}/{folder}/log"
        if not path.exists():
            continue
        lines = path.read_text().split("\n")[:-1]
        assert [int(line.partition(":")[0]) for line in lines] == list(range(len(lines))), f"snapshot {snapshot}"
        assert reached <= len(lines) <= count
        reached = len(lines)
