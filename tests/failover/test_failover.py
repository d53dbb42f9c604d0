"""A host dies under a database, another takes over from the mirror, and the first comes back: in network namespaces.

The commands are those of docs/snapfs-failover.7.md. The long form, over a bad link: tools/chaos/failover.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.mounts.hydrated import is_whole
from tests.fakes.patience import eventually
from tests.fakes.replication import failover
from tests.fakes.replication.hosts import site, why_not_namespaces

pytestmark = pytest.mark.skipif(bool(why_not_namespaces()), reason=why_not_namespaces() or "possible")


def test_sqlite_goes_on_elsewhere_and_the_old_host_can_do_no_harm(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        story = failover.Story(place, failover.Sqlite(tmp_path), load_s=3.0)
        story.run()
        assert story.measured.rows > 0
        assert story.measured.replicated_rows > 0


@pytest.mark.skipif(bool(failover.why_not_postgres()), reason=failover.why_not_postgres() or "possible")
def test_postgres_goes_on_elsewhere_and_the_old_host_can_do_no_harm(tmp_path: Path) -> None:
    with failover.reachable_folder() as folder, site(folder) as place:
        story = failover.Story(place, failover.Postgres(folder), load_s=3.0)
        story.run()
        assert story.measured.replicated_rows > 0


def test_a_host_that_was_only_cut_off_learns_that_it_was_replaced(tmp_path: Path) -> None:
    """Both are alive, and both databases work, until A can speak to the mirror again."""
    with site(tmp_path) as place:
        story = failover.Story(place, failover.Sqlite(tmp_path), load_s=1.0)
        place.start_mirror()
        story.work_on_a()
        place.cut_link(place.a)
        story.take_over_on_b()
        eventually(lambda: is_whole(place.b.status(story.mount_b)), "B's hydration")
        pg = place.mirror_root / "pg"
        before, alone = failover.hashes(pg), len(failover.acknowledged(story.notes))
        eventually(lambda: len(failover.acknowledged(story.notes)) > alone, "more work of A, which knows nothing")
        place.cut_link(place.a, cut=False)
        eventually(lambda: (place.a.status(story.mount_a)["fenced"] or {}).get("branch_kept", False), "A's fencing")
        assert failover.hashes(pg) == before
        with pytest.raises(OSError, match="Read-only file system"):
            (story.mount_a / "late").write_bytes(b"x")
        rows = failover.acknowledged(story.notes)
        place.a.snapfs("restore", story.volume_a, "tail-generation-1", tmp_path / "tail")
        assert story.database.query(place.a, tmp_path / "tail")[0] >= len(rows)
