"""The runbook, docs/snapfs-failover.7.md: every command in it is run, in its order, on hosts that are killed for it."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.patience import eventually
from tests.fakes.replication.hosts import REPLICATOR, SNAPFS, Host, Site, site, why_not_namespaces

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "snapfs-failover.7.md"
PROMPT = re.compile(r"    ([ab])# (.*)")
MISTAKE = "The writer was fenced off by mistake"
ADD_TARGET = '\n[[replication.target]]\nname = "mirror"\nurl = "{}"\ntoken_file = "{}"\n'
pytestmark = [
    pytest.mark.skipif(bool(why_not_namespaces()), reason=why_not_namespaces() or "possible"),
    pytest.mark.timeout(600),
]


def steps() -> Iterator[tuple[str, str, list[str]]]:
    """(section, prompt and command, what it prints), in the order of the page; one of the other cases is a section."""
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
        elif line.startswith(f"**{MISTAKE}**"):
            section = MISTAKE


class Runner:
    """Runs the page's commands, with this test's places in the place of the page's."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.base = "7"

    def host(self, letter: str) -> Host:
        return self.place.a if letter == "a" else self.place.b

    def type(self, line: str, printed: list[str]) -> str:
        found = PROMPT.fullmatch(line)
        assert found is not None
        host = self.host(found[1])
        command = self.translated(host, found[2])
        if "replicator status" in line:  # the page waits for exit status 0 before it goes on
            eventually(lambda: host.run("sh", "-c", command, check=False).returncode == 0, line)
        elif "snapfs status" in line:  # what was not in any snapshot becomes the tail a moment after the mount
            eventually(lambda: not missing(printed, host.run("sh", "-c", command, check=False).stdout), line)
        done = host.run("sh", "-c", command, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        output = done.stdout + done.stderr
        assert missing(printed, output) == [], f"{line}\n{output}"
        return output

    def translated(self, host: Host, command: str) -> str:
        """In one pass: a place of this test may lie under /var/ or /srv/ itself."""
        places = {
            "https://mirror:8700": self.place.url(host).removesuffix("/pg"),
            " /mnt": f" {host.folder}/mnt", "/tmp/": f"{host.folder}/tmp/",
            "/srv/": f"{host.folder}/srv/", "/var/": f"{host.folder}/var/",
            "/etc/snapfs/token": str(self.place.token_file), "pg 7 tail": f"pg {self.base} tail",
        }  # fmt: skip
        programs = {"snapfs-replicator": REPLICATOR, "snapfs": SNAPFS}
        command = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], command)
        called = r"(?:^|(?<=; ))(snapfs-replicator|snapfs)(?= )"
        return re.sub(called, lambda found: " ".join(programs[found[1]]), command)


def missing(printed: list[str], output: str) -> list[str]:
    """Lines of the page that the output does not have."""
    there = [words(line) for line in output.splitlines()]
    return [expected for expected in printed if words(expected) not in there]


def words(text: str) -> list[str]:
    """The words of a line, without its numbers, units and identifiers."""
    plain = re.sub(r"host([ab])-[0-9a-f]+", r"host\1", text)
    return [word for word in re.findall(r"[A-Za-z]+", plain) if len(word) > 3]


def test_every_command_of_the_runbook(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.start_mirror()
        for host in place.hosts:
            for folder in ("srv/volumes", "var/lib/pg", "var/log", "mnt", "tmp"):
                (host.folder / folder).mkdir(parents=True)
            host.mounts |= {host.folder / "var/lib/pg", host.folder / "mnt"}
        runner = Runner(place)
        before = ""
        for section, command, printed in steps():
            if section != before:
                _meanwhile(section, runner)
                before = section
            if section != "IN ONE LINE":
                runner.type(command, printed)
        mount = place.a.folder / "var/lib/pg"
        assert place.a.status(mount)["generation"] == 6
        assert _rows(mount) == ["alive", "replicated", "taken over"]
        assert _rows(place.b.folder / "mnt") == ["by mistake", "replicated", "taken over"]


def _meanwhile(section: str, runner: Runner) -> None:
    """What happens between the sections, by their headings."""
    place = runner.place
    mount_a, mount_b = (host.folder / "var/lib/pg" for host in place.hosts)
    if section == "A IS GONE":
        _add(mount_a, "replicated")
        place.a.snapfs("snapshot", mount_a)
        eventually(lambda: "up to date" in _status(place.a), "the last snapshot on the mirror")
        runner.base = str(place.a.status(mount_a)["last_snapshot"]["number"])
        _stop_agent(place.a)
        _add(mount_a, "lost")
        place.a.kill()
    elif section == "A IS BACK":
        _add(mount_b, "taken over")
        place.plug_in(place.a)
        place.a.mounts.add(mount_a)
    elif section == "BACK TO A":
        assert "lost" in _rows(place.a.folder / "srv/lost")
    elif section == MISTAKE:
        place.cut_link(place.a)
        _take_over_by_mistake(place, mount_b)
        _add(mount_a, "alive")
        place.a.snapfs("snapshot", mount_a)
        place.cut_link(place.a, cut=False)
        eventually(lambda: place.a.status(mount_a)["fenced"] is not None, "the fencing")


def _take_over_by_mistake(place: Site, mount: Path) -> None:
    """B goes on from what the mirror has, though A has lost no more than its network, and pushes what it did."""
    volume, url = place.b.folder / "srv/volumes/mistake", place.url(place.b)
    place.b.snapfs("mount", "--from", url, "--token-file", place.token_file, volume, mount)
    _add(mount, "by mistake")
    place.b.snapfs("snapshot", mount)
    place.b.snapfs("umount", mount)
    with open(volume / "volume.toml", "a") as file:
        file.write(ADD_TARGET.format(url, place.token_file))
    place.b.run(*REPLICATOR, "push", "--once", volume)


def _add(mount: Path, value: str) -> None:
    with closing(sqlite3.connect(mount / "db")) as base, base:
        base.execute("CREATE TABLE IF NOT EXISTS t (v TEXT)")
        base.execute("INSERT INTO t VALUES (?)", (value,))


def _rows(folder: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{folder}/db?immutable=1", uri=True)) as base:
        return [value for (value,) in base.execute("SELECT v FROM t ORDER BY v")]


def _status(host: Host) -> str:
    return host.run(*REPLICATOR, "status", host.folder / "srv/volumes/pg", check=False).stdout


def _stop_agent(host: Host) -> None:
    pid = int((host.folder / "srv/volumes/pg/replication.lock").read_text().split()[1])
    os.kill(pid, 15)
    eventually(lambda: not Path(f"/proc/{pid}/fd/0").exists(), "the end of the agent")  # it would send what comes now
