"""The runbook, docs/snapfs-failover.7.md: every command in it is run, in its order, on hosts that are killed for it."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.hosts import REPLICATOR, SNAPFS, Host, Site, site, until, why_not_namespaces

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "snapfs-failover.7.md"
PROMPT = re.compile(r"    ([ab])# (.*)")
pytestmark = [
    pytest.mark.skipif(bool(why_not_namespaces()), reason=why_not_namespaces() or "possible"),
    pytest.mark.timeout(300),
]


def steps() -> Iterator[tuple[str, str, list[str]]]:
    """(section, prompt and command, what it prints), in the order of the page."""
    section, command, printed = "", "", list[str]()
    for line in [*MANUAL.read_text().splitlines(), "## END"]:
        if PROMPT.fullmatch(line) or not line.startswith("    "):
            if command:
                yield section, command, printed
            command, printed = (line if PROMPT.fullmatch(line) else ""), []
        elif command:
            printed.append(line.strip())
        if line.startswith("## "):
            section = line[3:]


class Runner:
    """Types what the page says, with this test's places in the place of the page's."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.base = "7"

    def host(self, letter: str) -> Host:
        return self.place.a if letter == "a" else self.place.b

    def type(self, line: str, printed: list[str]) -> str:
        found = PROMPT.fullmatch(line)
        assert found is not None
        host = self.host(found[1])
        done = host.run("sh", "-c", self.translated(host, found[2]))
        said = done.stdout + done.stderr
        for expected in printed:
            assert any(words(line) == words(expected) for line in said.splitlines()), f"{line}\n{said}"
        return said

    def translated(self, host: Host, command: str) -> str:
        for program, words in (("snapfs-replicator", REPLICATOR), ("snapfs", SNAPFS)):
            command = re.sub(rf"(?:^|(?<=; )){program} ", " ".join(words) + " ", command)
        for old, new in (
            ("https://mirror:8700", self.place.url(host).removesuffix("/pg")),
            ("/srv/", f"{host.folder}/srv/"), ("/var/", f"{host.folder}/var/"),
            ("/etc/snapfs/token", str(self.place.token_file)), ("pg 7 tail", f"pg {self.base} tail"),
        ):  # fmt: skip
            command = command.replace(old, new)
        return command


def words(text: str) -> list[str]:
    """What a line says, whatever its numbers, units and identifiers are."""
    plain = re.sub(r"host([ab])-[0-9a-f]+", r"host\1", text)
    return [word for word in re.findall(r"[A-Za-z]+", plain) if len(word) > 3]


def test_every_command_of_the_runbook(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.start_mirror()
        for host in place.hosts:
            for folder in ("srv/volumes", "var/lib/pg", "var/log"):
                (host.folder / folder).mkdir(parents=True)
            host.mounts.add(host.folder / "var/lib/pg")
        runner = Runner(place)
        before = ""
        for section, command, printed in steps():
            if section != before:
                _meanwhile(section, runner)
                before = section
            if section != "IN ONE LINE":
                runner.type(command, printed)
        mount = place.a.folder / "var/lib/pg"
        assert place.a.status(mount)["generation"] == 5
        with closing(sqlite3.connect(mount / "db")) as base:
            assert base.execute("SELECT v FROM t ORDER BY v").fetchall() == [("replicated",), ("taken over",)]


def _meanwhile(section: str, runner: Runner) -> None:
    """What happens between the sections, as their headings tell."""
    place = runner.place
    mount_a, mount_b = (host.folder / "var/lib/pg" for host in place.hosts)
    if section == "A IS GONE":
        _add(mount_a, "replicated")
        place.a.snapfs("snapshot", mount_a)
        until(lambda: "up to date" in _status(place.a), "the last snapshot on the mirror")
        runner.base = str(place.a.status(mount_a)["last_snapshot"]["number"])
        _stop_agent(place.a)
        _add(mount_a, "lost")
        place.a.kill()
    elif section == "A IS BACK":
        _add(mount_b, "taken over")
        place.plug_in(place.a)
        place.a.mounts.add(mount_a)
    elif section == "BACK TO A":
        with closing(sqlite3.connect(place.a.folder / "srv/lost/db")) as base:
            assert ("lost",) in base.execute("SELECT v FROM t").fetchall()


def _add(mount: Path, value: str) -> None:
    with closing(sqlite3.connect(mount / "db")) as base, base:
        base.execute("CREATE TABLE IF NOT EXISTS t (v TEXT)")
        base.execute("INSERT INTO t VALUES (?)", (value,))


def _status(host: Host) -> str:
    return host.run(*REPLICATOR, "status", host.folder / "srv/volumes/pg").stdout


def _stop_agent(host: Host) -> None:
    pid = int((host.folder / "srv/volumes/pg/replication.lock").read_text().split()[1])
    os.kill(pid, 15)
