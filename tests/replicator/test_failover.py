"""A host dies under a database, another takes over from the mirror, and the first comes back: in network namespaces.

What is typed is what docs/snapfs-failover.7.md says. The long form, over a bad link: tools/chaos/failover.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import failover
from tests.fakes.hosts import site, why_not_namespaces

pytestmark = [
    pytest.mark.skipif(bool(why_not_namespaces()), reason=why_not_namespaces() or "possible"),
    pytest.mark.timeout(300),
]


def test_sqlite_goes_on_elsewhere_and_the_old_host_can_do_no_harm(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        story = failover.Story(place, failover.Sqlite(tmp_path), load_s=3.0)
        story.run()
        assert story.told.rows > 0
        assert story.told.replicated_rows > 0


@pytest.mark.skipif(bool(failover.why_not_postgres()), reason=failover.why_not_postgres() or "possible")
def test_postgres_goes_on_elsewhere_and_the_old_host_can_do_no_harm(tmp_path: Path) -> None:
    with failover.reachable_folder() as folder, site(folder) as place:
        story = failover.Story(place, failover.Postgres(folder), load_s=3.0)
        story.run()
        assert story.told.replicated_rows > 0
