"""A frozen namespace that was left in the middle of a query, as a failed seal leaves it."""

from __future__ import annotations

from pathlib import Path

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.live.namespace.namespace import Namespace


def test_the_next_cuts_show_their_own_names_whatever_was_left_half_read(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    left = []
    for number in range(1, 7):
        names.create(ROOT_INO, b"%d" % number, 0o100644, 0, 0)
        frozen = names.cut(names.epoch)
        assert [name for name, _, _ in frozen.entries(ROOT_INO)] == [b"%d" % each for each in range(1, number + 1)]
        left.append(frozen.entries(ROOT_INO))
        next(left[-1])
        frozen.close()
    left.clear()
    names.close()
