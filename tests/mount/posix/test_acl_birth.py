"""A file that inherits an ACL has it from its first instant, whatever happens to the daemon."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.patience import eventually


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the package acl")
def test_a_killed_daemon_leaves_nothing_without_its_inherited_acl(mounted: Any, mount: Callable[..., Any]) -> None:
    folder = mounted.path / "folder"
    folder.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u::rwx,g::rwx,o::---,u:1234:rwx", folder], check=True)
    wanted = os.getxattr(folder, "system.posix_acl_default")
    steps = "os.close(os.open(f'{sys.argv[1]}/f{n}', os.O_CREAT)); os.mkdir(f'{sys.argv[1]}/d{n}')"
    make = f"import os, sys\nfor n in range(10**6): {steps}"
    maker = subprocess.Popen([sys.executable, "-c", make, folder], stderr=subprocess.DEVNULL)
    eventually(lambda: len(list(folder.iterdir())) > 100, "enough of them")
    mounted.kill()
    maker.wait()
    mounted = mount()
    made = list(folder.iterdir())
    assert len(made) > 10
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
        assert len(os.getxattr(path, "system.posix_acl_access")) == len(wanted)
        assert not path.is_dir() or os.getxattr(path, "system.posix_acl_default") == wanted
