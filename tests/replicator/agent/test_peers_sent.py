"""Each target of a volume knows the others, with their ids, as soon as the agent has reached them, in any order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from replicator.agent import agent as agents
from replicator.agent.agent import VolumeAgent
from replicator.agent.agent_status import Link
from replicator.commands.target_commands import mark_new
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.target import TargetState
from snapfs.base.blocks import Generation
from snapfs.base.settings.replication_settings import TargetSettings
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import StoreIdentity
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume

NAMES = ("early", "late")


class Opened(DirectoryTarget):
    """Opens when `may_open` has returned, and remembers what the claims sent."""

    def __init__(self, path: str, may_open: Callable[[], Awaitable[object]]) -> None:
        super().__init__(path)
        self._may_open = may_open
        self.claimed = asyncio.Event()
        self.peers: list[Peers | None] = []
        self.target_id = ""

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        await self._may_open()
        state = await super().open(identity, make=make)
        self.target_id = state.target_id
        return state

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        await super().claim(generation, writer_id, snapshot, peers)
        self.peers.append(peers)
        self.claimed.set()

    def knows(self, other: Opened) -> bool:
        """Whether the last claim named the other target by its id."""
        sent = self.peers[-1] if self.peers else None
        return sent is not None and bool(other.target_id) and [each.id for each in sent.targets] == [other.target_id]


class Two:
    """A volume with two targets. The second opens when `condition`, given the first and the agent, has returned."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch,
        condition: Callable[[Opened, VolumeAgent], Awaitable[object]],
    ) -> None:  # fmt: skip
        settings = {"target": [{"name": name, "url": f"file://{folder}/{name}"} for name in NAMES]}
        self.source = SourceVolume(folder / "source", 5, settings)
        self.source.grow(2)
        mark_new(str(self.source.path), ())
        self.agent = VolumeAgent(str(self.source.path))

        async def at_once() -> None:
            """Opens at once."""

        async def later() -> object:
            return await condition(self.early, self.agent)

        self.early, self.late = (
            Opened(f"{folder}/{name}", may_open) for name, may_open in zip(NAMES, (at_once, later), strict=True)
        )
        monkeypatch.setattr(agents, "make_target", self._target)

    def _target(self, settings: TargetSettings) -> Opened:
        return self.early if settings.name == "early" else self.late


def test_one_push_names_each_target_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has claimed before the second is opened: it cannot know its id then."""

    async def story() -> None:
        two = Two(tmp_path, monkeypatch, lambda early, _: early.claimed.wait())
        await two.agent.run_once()
        assert not (two.early.peers[0] or Peers()).targets[0].id
        assert two.early.knows(two.late)
        assert two.late.knows(two.early)
        two.source.close()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))


def test_an_agent_at_rest_names_a_target_that_came_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_rest(_early: Opened, agent: VolumeAgent) -> None:
        while agent.targets[0].link is not Link.IDLE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)

    async def story() -> None:
        two = Two(tmp_path, monkeypatch, at_rest)
        running = asyncio.create_task(two.agent.run())
        while not (two.early.knows(two.late) and two.late.knows(two.early)):
            await asyncio.sleep(0.02)
        assert len(two.early.peers) == 2
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        two.source.close()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))
