"""Live tree, sealer and store against a model that remembers every version (tests/fakes/histories/volume_model.py).

SNAPFS_MODEL_SEEDS="7 8 100-200" and SNAPFS_MODEL_STEPS=20000 select a longer form; tools/chaos/model runs it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.histories.volume_model import run

pytestmark = pytest.mark.usefixtures("data_path")

STEPS = int(os.environ.get("SNAPFS_MODEL_STEPS", "1500"))


def seeds() -> list[int]:
    found: list[int] = []
    for part in os.environ.get("SNAPFS_MODEL_SEEDS", "1-3").split():
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
    return found


@pytest.mark.parametrize("seed", seeds())
def test_every_snapshot_equals_the_model(seed: int, tmp_path: Path) -> None:
    counts = run(seed, tmp_path, STEPS)
    assert counts["sealed"] > 0


@pytest.mark.parametrize("seed", seeds())
def test_with_real_threads(seed: int, tmp_path: Path) -> None:
    counts = run(seed, tmp_path, STEPS, threads=2)
    assert counts["sealed"] > 0


def test_a_seed_is_a_history(tmp_path: Path) -> None:
    """The same seed does the same, down to the bytes of the store."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(4, one, 700) == run(4, two, 700)
    assert _bytes_of(one) == _bytes_of(two)


def _bytes_of(folder: Path) -> dict[str, int]:
    segments = folder.glob("life*/store/segments/*.seg")
    return {path.name: path.stat().st_size for path in segments}
