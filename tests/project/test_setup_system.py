"""tools/setup --system as a whole: what the units name is there afterwards.

It runs in a mount namespace in which /usr, /etc and the like are overlays, on a copy of the checkout whose pip is a
stand-in (test_setup_rebuilds.py). tools/package_check/run has the units under systemd as PID 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.project_files import ROOT
from tests.project.test_setup_rebuilds import Checkout

OVERLAYS = """
set -e
for place in usr etc var/lib var/log; do
    mkdir -p "$1/$place/upper" "$1/$place/work"
    mount -t overlay none -o "lowerdir=/$place,upperdir=$1/$place/upper,workdir=$1/$place/work" "/$place"
done
shift
exec "$@"
"""


def in_namespace(folder: Path, *command: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command that sees and changes overlays of /usr and /etc, kept in `folder`."""
    words = ["unshare", "-m", "--propagation", "private", "bash", "-c", OVERLAYS, "bash", folder, *command]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=240, env=env)


def run_setup(checkout: Checkout, name: str, before: str) -> subprocess.CompletedProcess[str]:
    """tools/setup --system after another command; the overlays are in a folder of this name."""
    environment = {**os.environ, "PATH": f"{checkout.folder / 'bin'}:{os.environ['PATH']}"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # as in test_setup_rebuilds.py
    script = f'{before} && exec "$0" --system'
    place, program = checkout.folder.parent / name, checkout.folder / "tools/setup"
    return in_namespace(place, "bash", "-c", script, program, env=environment)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("system")
    if os.geteuid() != 0 or in_namespace(folder / "try", "true", env=dict(os.environ)).returncode:
        pytest.skip("overlays of /usr and /etc take root, and a filesystem that they can lie on")
    made = Checkout(folder / "copy")
    for name in ("systemd", "docs"):
        subprocess.run(["cp", "-a", ROOT / name, made.folder / name], check=True)
    for program, module in (("snapfs", "snapfs"), ("snapfs-replicator", "replicator")):
        path = f'PYTHONPATH={ROOT} exec "{sys.executable}" -m {module} "$@"'
        made.script(f".venv/bin/{program}", f"#!/bin/sh\n{path}\n")
    done = run_setup(
        made, "made", "mkdir -p /etc/systemd/system /etc/snapfs && echo VOLUMES=/mine >/etc/snapfs/agent.env"
    )
    assert done.returncode == 0, done.stderr
    assert "snapfs-agent.service snapfs-replicator.service snapfs@.service" in done.stderr
    return made


def there(checkout: Checkout, path: str) -> Path:
    """Where a path of the namespace lies: in the overlay, or below it in the system."""
    resolved = re.sub(r"^/(bin|sbin)/", r"/usr/\1/", path)
    in_overlay = checkout.folder.parent / "made" / re.sub(r"^/(usr|etc)/", r"\1/upper/", resolved)
    return in_overlay if os.path.lexists(in_overlay) else Path(path)


def units(checkout: Checkout) -> dict[str, str]:
    folder = there(checkout, "/etc/systemd/system")
    return {path.name: path.read_text() for path in folder.glob("snapfs*.service")}


def test_the_units_are_those_of_the_checkout(checkout: Checkout) -> None:
    assert units(checkout) == {path.name: path.read_text() for path in (ROOT / "systemd").glob("*.service")}


def test_each_program_and_page_that_a_unit_names_is_there(checkout: Checkout) -> None:
    for name, text in units(checkout).items():
        programs = re.findall(r"^Exec\w+=[-@:+!]*(\S+)", text, re.MULTILINE)
        assert programs
        assert [each for each in programs if not os.access(there(checkout, each), os.X_OK)] == [], name
        pages = re.findall(r"^Documentation=file:(\S+)", text, re.MULTILINE)
        assert [each for each in pages if not there(checkout, each).is_file()] == [], name


def test_what_a_unit_runs_and_the_system_lacks_is_installed(checkout: Checkout) -> None:
    """A minimal Debian has no /bin/kill, and `systemctl reload` of the mirror failed."""
    done = run_setup(checkout, "without kill", "rm -f /bin/kill")
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, "setup: installing procps")


def test_the_user_of_the_mirror_and_the_settings_of_the_units_are_there(checkout: Checkout) -> None:
    made = checkout.folder.parent / "made"
    assert {path.name: path.read_text() for path in (made / "etc/upper/snapfs").iterdir()} == {
        "agent.env": "VOLUMES=/mine\n",  # which was there before
        "mirror.env": (ROOT / "systemd/mirror.env").read_text(),
    }
    if shutil.which("systemd-sysusers"):
        assert "\nsnapfs-mirror:" in there(checkout, "/etc/passwd").read_text()
    if shutil.which("systemd-tmpfiles"):
        assert (made / "var/lib/upper/snapfs-mirror").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["mount.fuse.snapfs", "umount.fuse.snapfs"])
def test_the_mount_helpers_are_there(name: str, checkout: Checkout) -> None:
    assert os.readlink(there(checkout, f"/sbin/{name}")) == str(checkout.folder / "systemd" / name)


@pytest.mark.parametrize("program", ["snapfs", "snapfs-replicator"])
def test_each_shell_has_its_completion(program: str, checkout: Checkout) -> None:
    for path in (
        f"/usr/share/bash-completion/completions/{program}",
        f"/usr/local/share/zsh/site-functions/_{program}",
        f"/usr/share/fish/vendor_completions.d/{program}.fish",
    ):
        assert program in there(checkout, path).read_text()
