"""A takeover goes on from what was acknowledged to the last writer before the claim, also if that was a moment ago."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.blocks import ROOT_INO, Disk
from snapfs.transfer import remount as remounting
from tests.transfer.test_lazy_model import Life, make_source

Claim = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume whose writer seals one more snapshot just before it is fenced off."""
    path = tmp_path / "source"
    make_source(str(path), random.Random(3))
    claim: Claim = remounting.claimed

    def late(*arguments: Any) -> Any:
        life = Life(str(path))
        ino = life.tree.mknod(ROOT_INO, b"acknowledged", 0o100644, 0, 0, 0).ino
        life.tree.write(ino, 0, b"a moment before")
        life.seal()
        life.close()
        return claim(*arguments)

    monkeypatch.setattr(remounting, "claimed", late)
    return path


def test_the_last_moment_counts(source: Path, tmp_path: Path) -> None:
    report = remounting.remount(str(tmp_path / "new"), [str(source)], Disk())
    assert report is not None
    assert (report.snapshot, report.passed_over) == (3, [])
    life = Life(str(tmp_path / "new"))
    found = life.tree.lookup(ROOT_INO, b"acknowledged")
    assert found is not None
    assert life.tree.read(found.ino, 0, 100) == b"a moment before"
    life.close()
