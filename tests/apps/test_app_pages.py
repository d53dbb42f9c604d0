"""The pages on applications: every command is run, in the order of the page, with the real application."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.page_applications import APPLICATIONS, Application
from tests.conftest import take_down
from tests.fakes.patience import PATIENCE_S, eventually

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROMPT = re.compile(r"    (b?)# (.*)")
_ROOT = Path(__file__).resolve().parents[2]


def steps(page: str) -> Iterator[tuple[str, str, str]]:
    """(section, host, command), in the order of the page."""
    section = ""
    for line in (DOCS / f"snapfs-{page}.7.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        if found := PROMPT.fullmatch(line):
            yield section, found[1] or "a", found[2]


def words_of(process: Path) -> bytes:
    """The command line; none of one that has ended."""
    try:
        return process.read_bytes()
    except OSError:
        return b""


class Page:
    """Two hosts in two folders, and a disk that both can reach."""

    def __init__(self, name: str, base: Path, application: Application) -> None:
        self.base, self.application, self.mounts = base, application, list[Path]()
        self.data = ""
        for folder in (
            "nas",
            "tmp",
            "bin",
            *(f"{host}/{each}" for host in "ab" for each in ("mnt", "srv/volumes", "var/log")),
        ):
            (base / folder).mkdir(parents=True)
        (base / "tmp").chmod(0o1777)
        for program, module in (("snapfs", "snapfs"), ("snapfs-replicator", "replicator")):
            script = base / "bin" / program
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            script.chmod(0o755)

    def translated(self, host: str, command: str) -> str:
        places = {
            "/mnt/nas": f"{self.base}/nas", "/tmp/rehearsal": f"{self.base}/tmp/rehearsal",
        }  # fmt: skip
        places |= self.application.places
        places |= {f"{each}/": f"{self.base}/{host}{each}/" for each in ("/etc", "/mnt", "/srv", "/var")}
        return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], command)

    def type(self, host: str, command: str) -> None:
        words = command.split()
        if words[0] == "systemctl":
            place = self.base / host / self.data.lstrip("/")
            return self.application.start(place) if words[1] == "start" else self.application.stop()
        shell = self.translated(host, command)
        environment = {**os.environ, "PATH": f"{self.base}/bin:{os.environ['PATH']}", "PYTHONPATH": str(_ROOT)}

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["bash", "-c", shell], capture_output=not shell.endswith("&"), text=True, check=False, cwd=self.base,
                env=environment, timeout=PATIENCE_S,
            )  # fmt: skip

        if "replicator status" in command:  # the page waits for exit status 0
            return eventually(lambda: run().returncode == 0, command)
        done = run()
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return None

    def end_processes(self) -> None:
        """The agent, and what a failed rehearsal left."""
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            text = words_of(process)
            ours = str(self.base).encode() in text and process.parent.name != str(os.getpid())
            if ours and b"--go-fd" not in text and (b"replicator" in text or b"rehearsal" in text):
                os.kill(int(process.parent.name), signal.SIGTERM)
                eventually(lambda gone=process: not words_of(gone), "the end of a process")  # type: ignore[misc]

    def clear(self) -> None:
        self.application.stop()
        self.end_processes()
        for host in "ab":
            for place in (self.base / host / self.data.lstrip("/"), self.base / host / "mnt/rehearsal"):
                take_down(place)
                take_down(Path(f"{place}.original"))


@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="the pages are for root")
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_command_of_the_page(name: str, tmp_path: Path) -> None:
    kind, program = APPLICATIONS[name]
    if not (shutil.which(program) or glob.glob(program)):
        pytest.skip(f"{program} is not installed")
    application = kind(tmp_path)
    page = Page(name, tmp_path, application)
    commands = list(steps(name))
    adopt = next(command.split() for _, _, command in commands if command.startswith("snapfs adopt -o"))
    page.data = adopt[-2]
    live = tmp_path / "a" / page.data.lstrip("/")
    try:
        application.make(live)
        application.start(live)
        application.add()
        before, known = "", application.count()
        assert known > 0
        for section, host, command in commands:
            if section != before:
                known = _between(page, section, known)
                before = section
            if (host == "b" and application.process is not None) or (
                host == "b" and live.exists() and os.path.ismount(live)
            ):
                _host_is_gone(page, live)
            page.type(host, command)
        assert application.count() >= known
        assert os.path.ismount(tmp_path / "b" / page.data.lstrip("/"))
    finally:
        page.clear()


def _between(page: Page, section: str, known: int) -> int:
    """What happens before a section: what is there is what was, and a little more is written."""
    found = page.application.count()
    assert found >= (1 if section == "FAILOVER" else known), section  # before that section it was rolled back
    page.application.add()
    after = page.application.count()
    assert after > found, "nothing was written"
    return after


def _host_is_gone(page: Page, live: Path) -> None:
    """Host A ends; its last snapshot is on the target."""
    page.application.stop()
    page.type("a", f"snapfs snapshot {page.data}")
    volume = next(iter((page.base / "a/srv/volumes").iterdir()))
    page.type("a", f"snapfs-replicator status /srv/volumes/{volume.name}")
    page.end_processes()
    take_down(live)
