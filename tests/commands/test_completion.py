"""The completion that tools/setup --system installs completes, in each of the shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "snapfs": ("snapfs.commands.cli", "snaps", "snapshot "),
    "snapfs-replicator": ("replicator.commands.replicator_cli", "stat", "status "),
}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the two commands in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, (module, _, _) in PROGRAMS.items():
        code = f'import sys; sys.argv[0] = "{name}"; from {module} import main; main()'
        (folder / name).write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
        (folder / name).chmod(0o755)
    return folder


def environment(programs: Path, **more: str) -> dict[str, str]:
    path = f"{programs}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "HOME": str(programs.parent), **more}


def source(programs: Path, program: str, shell: str) -> str:
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    done = subprocess.run(
        [programs / program], env=environment(programs, **{variable: f"{shell}_source"}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def typed(command: list[str], lines: list[str], wanted: str, env: dict[str, str], folder: Path) -> str:
    """What an interactive shell shows when these lines are typed, each when the one before has been carried out, until
    `wanted` is there or all patience has gone."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(folder)
        os.execvpe(command[0], command, env)
    shown = b""
    try:
        for number, line in enumerate(lines):
            is_last = line is lines[-1]
            said = wanted if is_last else f"carried {number} out"
            os.write(terminal, (line if is_last else f"{line}; echo 'carried' {number} out\n").encode())
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end and said.encode() not in shown:
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 4096)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
    return shown.decode(errors="replace")


@pytest.mark.parametrize("program", PROGRAMS)
def test_bash_completes(programs: Path, program: str, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(source(programs, program, "bash"))
    _, begun, wanted = PROGRAMS[program]
    lines = [f"source {script}", f"{program} {begun}\t"]
    assert f"{program} {wanted}" in typed(
        ["bash", "--norc", "--noprofile", "-i"], lines, f"{program} {wanted}", environment(programs), tmp_path
    )


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_completes(programs: Path, program: str, tmp_path: Path) -> None:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / f"_{program}").write_text(source(programs, program, "zsh"))
    _, begun, wanted = PROGRAMS[program]
    lines = [f"fpath=({tmp_path}/functions $fpath); autoload -U compinit && compinit -u -D", f"{program} {begun}\t"]
    shown = typed(["zsh", "-f", "-i"], lines, f"{program} {wanted}", environment(programs), tmp_path)
    assert f"{program} {wanted}" in shown or wanted.removeprefix(begun) in shown.split(f"{program} {begun}")[-1]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize("program", PROGRAMS)
def test_fish_completes(programs: Path, program: str, tmp_path: Path) -> None:
    script = tmp_path / "completion.fish"
    script.write_text(source(programs, program, "fish"))
    _, begun, wanted = PROGRAMS[program]
    words = ["fish", "--no-config", "-c", f"source {script}; complete -C '{program} {begun}'"]
    done = subprocess.run(
        words, env=environment(programs), capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [wanted.strip()]


def test_a_place_completes_as_a_folder(programs: Path) -> None:
    env = environment(programs, _SNAPFS_COMPLETE="bash_complete", COMP_WORDS="snapfs list /va", COMP_CWORD="2")
    done = subprocess.run([programs / "snapfs"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "dir,/va\n"


def test_setup_installs_all_that_the_units_name() -> None:
    """Each program that a unit starts is linked, and each unit is installed."""
    setup = (ROOT / "tools/setup").read_text()
    named = set()
    for unit in (ROOT / "systemd").glob("*.service"):
        for line in unit.read_text().splitlines():
            key, _, command = line.partition("=")
            if key.startswith("Exec"):
                named.add(command.split()[0])
    programs = setup.partition('programs="')[2].partition('"')[0].split()
    assert {f"/usr/local/bin/{program}" for program in programs} == {each for each in named if "snapfs" in each}
    assert "for unit in systemd/*.service" in setup
