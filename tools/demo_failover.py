"""The second part of the demo: a host dies under a database, another goes on, and the first one's return does no harm.

The steps and their checks are in tests/fakes/replication/failover.py, which the tests run too; here each is printed,
with times.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fakes.replication import failover
from tests.fakes.replication.hosts import FailedError, site

__all__ = ["FailedError", "run_story"]

MEGABYTES_OF_SCALE = 16
"""Of one unit of pgbench's scale, about."""


def run_story(base: Path, seconds: float, with_postgres: bool, megabytes: int, loopback: bool = False) -> None:
    """The story, in `base`. AssertionError, FailedError, TimeoutError for what does not hold."""
    folder = base / "failover"
    folder.mkdir(mode=0o755)
    with site(folder, namespaces=False if loopback else None) as place:
        database: failover.Database = failover.Sqlite(folder, rows=megabytes * 250)
        if place.separate:
            print("\nTwo hosts and a mirror, each a network namespace of its own:")
            if with_postgres and not failover.why_not_postgres():
                database = failover.Postgres(folder, scale=max(megabytes // MEGABYTES_OF_SCALE, 1))
        else:
            why = place.why_not_namespaces or "as requested"
            print(f"\nTwo hosts and a mirror, all over the loopback, with SQLite ({why}):")
        _run(failover.Story(place, database, load_s=seconds, report=_ok))


def _ok(line: str) -> None:
    print(f"    ok  {line}", flush=True)


def _took(seconds: float, words: str) -> None:
    print(f"{seconds * 1000:9.1f} ms  {words}", flush=True)


def _run(story: failover.Story) -> None:
    name = story.database.name
    story.site.start_mirror()
    started = time.monotonic()
    story.work_on_a()
    size = sum(path.stat().st_size for path in story.mount_a.rglob("*") if path.is_file())
    what = f"{name} ({size / 1e6:.0f} MB) is made and works on A, with a snapshot every half second"
    _took(time.monotonic() - started, what)
    print(story.a.run(*failover.REPLICATOR, "status", story.volume_a, check=False).stdout.rstrip())
    print("\nHost A is killed: all of its processes, its mount, its network.")
    story.kill_a()
    print(f"    {story.measured.rows} transactions had been acknowledged to a client that noted each.")
    print("\nHost B: snapfs mount --from MIRROR")
    story.take_over_on_b()
    _took(story.measured.mount_s, "until the mount answered, writable, with hardly a byte of the state here")
    _took(story.measured.first_answer_s, f"until {name} on it, which recovers from the crash, answered its first query")
    fetched = story.b.status(story.mount_b)["hydration"].get("fetched_bytes", 0)
    print(f"              {fetched / 1e6:.1f} MB had been fetched by then")
    story.check_what_b_has()
    measured = story.measured
    print(
        f"    Lost: the {measured.cut_to_kill_s:.2f} s between the last replicated cut and the kill, "
        f"{measured.lost_rows} of {measured.rows} acknowledged transactions."
    )
    print("\nHost A comes back, mounts its volume and starts its agent, as if nothing had happened:")
    story.a_returns()
    print("\nHost A catches up as a standby, B hands over, A goes on:")
    started = time.monotonic()
    story.fail_back()
    _took(time.monotonic() - started, "for all of that, the checks included")
