"""The short, seeded form of tools/chaos/rot: one file is damaged, and everything that reads it is judged.

Promise 11: no flipped, lost or torn byte is taken for "it was never there".
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fakes.disks import rot


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[rot.Subject, rot.Subject]:
    return rot.make(tmp_path_factory.mktemp("rot"))


@pytest.mark.parametrize("which", [0, 1], ids=["volume", "mirror"])
@pytest.mark.parametrize("damage", dict.fromkeys(rot.DAMAGES), ids=lambda damage: damage.__name__)
def test_what_is_damaged_is_named_repaired_or_harmless(
    subjects: tuple[rot.Subject, rot.Subject], which: int, damage: rot.Damage, tmp_path: Path
) -> None:
    subject, rng = subjects[which], random.Random(17)
    for name in rng.sample(subject.files, min(4, len(subject.files))):
        rot.damaged_and_judged(subject, name, damage, rng.randrange(1 << 30), tmp_path)


def test_the_judge_sees_a_snapshot_that_is_silently_missing(
    subjects: tuple[rot.Subject, rot.Subject], tmp_path: Path
) -> None:
    """A test that cannot fail proves nothing: the state of before, as a whole, is another history."""
    subject = subjects[0]

    def older(_rng: random.Random, path: Path, _older: Path | None) -> None:
        for each in ("snapshots.log", "snapshots.end", "segments.list"):
            (path.parent / each).write_bytes((subject.older / "store" / each).read_bytes())
        max((path.parent / "segments").glob("*.seg")).unlink()

    with pytest.raises(AssertionError, match="silently another history"):
        rot.damaged_and_judged(subject, "store/snapshots.log", older, 1, tmp_path)
