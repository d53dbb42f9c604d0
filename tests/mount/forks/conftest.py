"""Forks for the tests of this folder, and what is compared of them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mounted, run_snapfs, take_down

Fork = Callable[..., Mounted]


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Fork]:
    """`fork(MNT, NAME, more...)`: a fork at tmp_path/NAME; all are gone when the test ends."""
    places: list[Path] = []

    def do(origin: Path, name: str, *arguments: str | Path) -> Mounted:
        place = tmp_path / name
        places.append(place)
        made = json.loads(run_snapfs("fork", "--json", origin, place, *arguments).stdout)
        assert made["mountpoint"] == str(place)
        return Mounted(Path(made["volume"]), place)

    yield do
    for place in places:
        take_down(place)


def contents(top: Path) -> dict[str, Any]:
    """Each path below, with its mode and content."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            plain = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(top))] = (path.lstat().st_mode, plain)
    return found


def fill(top: Path, chance: random.Random) -> None:
    for folder in ("a/b", "c"):
        (top / folder).mkdir(parents=True)
        for number in range(5):
            (top / folder / f"file{number}").write_bytes(chance.randbytes(chance.randrange(200_000)))
    os.link(top / "a/b/file1", top / "c/linked")
    os.symlink("a/b", top / "symlink")
