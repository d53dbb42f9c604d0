"""Fields and metrics that were renamed have both names for one version, with one value."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.commands.mirror_commands import _shown
from snapfs.control import mount_status
from snapfs.transfer.failover.fence import Fence, Fenced


def test_a_mount_has_both_names_in_status_metrics_and_repair(mounted: Any, snapfs: Any) -> None:
    (mounted.path / "a").write_bytes(b"x" * 10_000)
    mounted.snapshot()
    status = mounted.status()
    assert status["stray_files"] == status["aside"] == []
    root = status["last_snapshot"]["root"]
    assert root["content_hash"] == root["proof"]
    lines = dict(
        line.split(" ")
        for line in (mounted.path / ".snapfs" / "metrics").read_text().splitlines()
        if not line.startswith("#")
    )
    assert lines["snapfs_preserve_copied_bytes_total"] == lines["snapfs_copied_aside_bytes_total"]
    facts = json.loads(snapfs("verify", "--repair", "--json", mounted.path).stdout)
    assert facts["repaired_objects"] == facts["mended"]


def test_an_unmounted_volume_has_both_names_in_repair_and_list(mounted: Any, snapfs: Any) -> None:
    mounted.snapshot()
    snapfs("umount", mounted.path)
    facts = json.loads(snapfs("verify", "--repair", "--json", mounted.volume).stdout)
    assert facts["repaired_objects"] == facts["mended"]
    (record,) = json.loads(snapfs("list", "--json", mounted.volume).stdout)
    assert record["root"]["content_hash"] == record["root"]["proof"]


@pytest.mark.parametrize("kind", ["remounted", "taken-over"])
def test_a_takeover_has_both_names(kind: str) -> None:
    event = SimpleNamespace(kind=kind, fields={"generation": 2, "snapshot": 7, "not_asked": [{"url": "https://b"}]})
    facts = mount_status.taken_over([event])
    assert facts is not None
    assert facts["not_queried"] == facts["not_asked"] == [{"url": "https://b"}]


def test_a_fence_has_both_names() -> None:
    fenced = Fenced(1, 2, "host-b", "mirror", 10**18)
    facts = Fence.facts(SimpleNamespace(fenced=fenced, refuses=True))  # type: ignore[arg-type]
    assert facts is not None
    assert facts["by_writer_id"] == facts["by_holder"] == "host-b"


def test_a_list_of_a_mirror_has_both_names_and_no_seed() -> None:
    shown = _shown({"name": "pg", "holder": "host-a", "seed": "secret"})
    assert (shown["writer_id"], shown["holder"], shown["seed"]) == ("host-a", "host-a", None)
