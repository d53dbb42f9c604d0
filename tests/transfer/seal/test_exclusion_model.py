"""Seal and rollback with paths that are in no snapshot, against a model that works them out by brute force.

SNAPFS_MODEL_SEEDS and SNAPFS_MODEL_STEPS select a longer form, as in test_seal_model.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.histories.excluding_model import ExcludingWorld
from tests.fakes.histories.volume_model import run
from tests.transfer.seal.test_seal_model import STEPS, seeds

pytestmark = pytest.mark.usefixtures("data_path")


@pytest.mark.parametrize("seed", seeds())
def test_every_snapshot_equals_the_model(seed: int, tmp_path: Path) -> None:
    counts = run(seed, tmp_path, STEPS, make=ExcludingWorld)
    assert counts["sealed"] > 0


@pytest.mark.parametrize("seed", seeds())
def test_with_real_threads(seed: int, tmp_path: Path) -> None:
    counts = run(seed, tmp_path, STEPS, threads=2, make=ExcludingWorld)
    assert counts["sealed"] > 0
