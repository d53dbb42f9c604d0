"""tools/setup builds the C extensions again when anything that they are made of has changed, and only then.

It runs in a copy whose pip is a stand-in, which builds two modules in Python with the attributes of the extensions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base import native_build
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/sh
case "$*" in
"-m pip --version"*) ;;
"-m pip install"*)
    echo "$SNAPFS_TEST" >>builds
    [ -e broken ] || "{python}" -c '{build}'
    ;;
*) exec "{python}" "$@" ;;
esac
"""
BUILD = """
import os
from pathlib import Path
from snapfs.base import native_build
for name in native_build.EXTENSIONS:
    values = native_build.sources_hash(Path("snapfs")), os.environ["SNAPFS_TEST"]
    content = "SOURCES_HASH, TEST_HOOKS = %r, %s" % values
    Path(name.replace(".", "/") + ".py").write_text(content)
""".replace("'", '"')


class Checkout:
    """What tools/setup looks at, with a .venv of a stand-in for Python that counts the builds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "snapfs", folder / "snapfs", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        (folder / "tools").mkdir()
        for name in ("tools/setup", "setup.py", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        self.script(".venv/bin/python", PYTHON.format(python=sys.executable, build=BUILD))
        self.script("bin/apt-get", "#!/bin/sh\necho 'a test installs no packages' >&2\nexit 1\n")

    def script(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a module of the same size replaces another in the same second
        environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [self.folder / "tools/setup", *arguments], env=environment, capture_output=True, text=True, check=False,
            timeout=PATIENCE_S,
        )  # fmt: skip

    def builds(self, *arguments: str) -> int:
        """How often a run builds."""
        log = self.folder / "builds"
        log.write_text("")
        done = self.setup(*arguments)
        assert done.returncode == 0, done.stderr
        return len(log.read_text().splitlines())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One for all tests: each leaves it built."""
    made = Checkout(tmp_path_factory.mktemp("checkout") / "copy")
    assert [made.builds(), made.builds()] == [1, 0]
    return made


def pull(name: str) -> Callable[[Checkout], None]:
    def change(checkout: Checkout) -> None:
        path = checkout.folder / name
        text = path.read_text() if path.exists() else ""
        path.write_text(f"{text}\n")
        os.utime(path, (0, 0))  # the times of files do not count

    return change


def remove_a_source(checkout: Checkout) -> None:
    (checkout.folder / "snapfs/fuse/native/suid_cache.c").unlink()


def remove_an_extension(checkout: Checkout) -> None:
    (checkout.folder / f"{native_build.ROUTER.replace('.', '/')}.py").unlink()


def copy_an_extension_of_other_sources(checkout: Checkout) -> None:
    path = checkout.folder / f"{native_build.CONTENT.replace('.', '/')}.py"
    path.write_text('SOURCES_HASH, TEST_HOOKS = "0", 0')


CHANGES: dict[str, Callable[[Checkout], None]] = {
    **{
        name: pull(name)
        for name in (
            "setup.py", "pyproject.toml", "constraints.txt", "snapfs/live/native/content_api.h",
            "snapfs/fuse/native/poller.c", f"snapfs/live/native/new.{'h'}",
        )
    },
    "a source is gone": remove_a_source,
    "an extension is gone": remove_an_extension,
    "an extension is another": copy_an_extension_of_other_sources,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_it_builds_again_after_a_change(change: str, checkout: Checkout) -> None:
    CHANGES[change](checkout)
    assert checkout.builds() == 1


def test_a_change_in_python_builds_nothing(checkout: Checkout) -> None:
    pull("snapfs/live/tree.py")(checkout)
    assert checkout.builds() == 0


def test_an_extension_that_cannot_be_built_is_reported(checkout: Checkout) -> None:
    (checkout.folder / "broken").touch()
    pull("snapfs/live/native/content.h")(checkout)
    for _ in range(2):
        done = checkout.setup()
        assert done.returncode == 3
        assert "the C extensions could not be built" in done.stderr
    (checkout.folder / "broken").unlink()
    assert checkout.builds() == 1
