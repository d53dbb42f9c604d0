"""Rot in the files of a live tree after a kill: named, reported, or harmless; no change or byte is silently lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from snapfs.live.intents.intent_records import HEADER_SIZE, MARKED
from tests.fakes.disks import live_rot


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_rot.make(tmp_path_factory.mktemp("killed") / "live")


def test_all_files_but_those_with_the_users_bytes_are_damaged_here(killed: Path) -> None:
    assert {name.partition("/")[0] for name in live_rot.names_of(killed)} == {
        "intents", "intents-mark", "life", "namespace.db", "namespace.db-mark", "namespace.db-reserve",
        "namespace.db-shm", "namespace.db-sums", "namespace.db-wal", "preserve",
    }  # fmt: skip


def test_rot_of_any_file_after_a_kill_loses_nothing_silently(killed: Path, tmp_path: Path) -> None:
    """The short form of what tools/chaos/rot does to a live tree."""
    chance, words = random.Random(8), set[str]()
    for name in live_rot.names_of(killed):
        for damage in live_rot.DAMAGES:
            seed = chance.randrange(1 << 30)
            try:
                words.add(live_rot.damaged_and_judged(killed, name, damage, seed, tmp_path))
            except Exception as error:
                raise AssertionError(f"{damage.__name__} of {name}, seed {seed}") from error
    assert words >= {"refused", "reported", "harmless"}, words


def test_the_judge_sees_a_change_that_is_silently_missing(killed: Path, tmp_path: Path) -> None:
    """A test that cannot fail proves nothing: logs without records, that nothing is held against."""

    def forgotten(_rng: random.Random, path: Path, _older: Path | None) -> None:
        path.unlink()
        for log in path.with_name("intents").iterdir():
            log.write_bytes(log.read_bytes()[:HEADER_SIZE].replace(MARKED, bytes(len(MARKED))))

    with pytest.raises(AssertionError, match="a change is missing"):
        live_rot.damaged_and_judged(killed, "intents-mark", forgotten, 1, tmp_path)
