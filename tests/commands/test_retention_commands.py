"""prune, hold and release, as a user sees them: of a mounted volume, of one that is not, and of a target."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapfs.base.errors import EXIT_BUSY, EXIT_ENVIRONMENT
from tests.conftest import Mounted, run_snapfs
from tests.fakes.patience import PATIENCE_S, eventually


def pruned(*words: str | Path, check: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_snapfs("prune", "--json", *words, check=check).stdout)
    return found


def numbers(place: Path) -> list[int]:
    return [each["number"] for each in json.loads(run_snapfs("list", "--json", place).stdout)]


def kinds(place: Path) -> list[tuple[str, str, str]]:
    lines = map(json.loads, run_snapfs("log", "--json", place).stdout.splitlines())
    wanted = ("held", "released", "dropped")
    return [(each["kind"], each.get("by", ""), each.get("why", "")) for each in lines if each["kind"] in wanted]


def make(mounted: Mounted, count: int) -> None:
    for number in range(count):
        (mounted.path / "file").write_text(str(number))
        mounted.snapshot()


def test_prune_of_a_mounted_volume(mount: Callable[..., Mounted], tmp_path: Path) -> None:
    mounted = mount()
    make(mounted, 6)
    rules = ("-o", "last=2", "-o", "minimum_good=1")
    run_snapfs("hold", mounted.path, "2", "--why", "the audit of 2026", "--until", "30d")
    shown = run_snapfs("prune", mounted.path, "--dry-run", *rules).stdout
    assert [line.split()[0] for line in shown.splitlines() if "would drop" in line] == ["1", "3", "4"]
    assert "it is held by person.2 (the audit of 2026)" in shown
    assert numbers(mounted.path) == [1, 2, 3, 4, 5, 6]
    listed = json.loads(run_snapfs("list", "--json", mounted.path).stdout)[1]
    assert listed["held_by"][0]["why"] == "the audit of 2026"
    assert listed["held_by"][0]["until_ns"]
    assert run_snapfs("drop", mounted.path, "2", check=False).returncode == EXIT_BUSY
    found = pruned(mounted.path, *rules)
    assert (found["dropped"], found["dry_run"]) == ([1, 3, 4], False)
    assert [each["action"] for each in found["snapshots"]] == ["drop", "keep", "drop", "drop", "keep", "keep"]
    assert numbers(mounted.path) == [2, 5, 6]
    run_snapfs("release", mounted.path, "2")
    rule = "retention: no rule keeps it (last = 2, minimum_good = 1)"
    held, released = ("held", "", "the audit of 2026"), ("released", "", "")
    assert kinds(mounted.path) == [held, *[("dropped", "policy", rule)] * 3, released]
    assert run_snapfs("release", mounted.path, "2", check=False).returncode == EXIT_ENVIRONMENT
    run_snapfs("umount", mounted.path)
    toml = mounted.volume / "volume.toml"
    toml.write_text(toml.read_text().replace("[retention]\n", "[retention]\nlast = 1\nminimum_good = 1\n"))
    run_snapfs("hold", mounted.volume, "5")
    assert pruned(mounted.volume)["dropped"] == [2]
    run_snapfs("release", mounted.volume, "5")
    mounted = mount()
    make(mounted, 1)  # the daemon acts on the rules with each snapshot
    eventually(lambda: numbers(mounted.path) == [7], "the others to be dropped")


def test_prune_without_a_rule_says_so(mounted: Mounted) -> None:
    make(mounted, 1)
    done = run_snapfs("prune", mounted.path)
    assert "all are kept" in done.stdout
    assert "there is no rule" in done.stderr
    for bad in ("last=x", "keep=3", "last"):
        done = run_snapfs("prune", mounted.path, "-o", bad, check=False)
        assert done.returncode
        assert len(done.stderr.strip().splitlines()) <= 3
    done = run_snapfs("hold", mounted.path, "1", "--until", "2001-01-01", check=False)
    assert "that has passed" in done.stderr


def test_prune_of_a_target_by_its_rules(mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """By the volume's settings, by URL, and under a lock."""
    mounted, target = mount(), tmp_path / "target"
    make(mounted, 4)
    with open(mounted.volume / "volume.toml", "a", encoding="utf-8") as settings:
        settings.write(f'\n[[replication.target]]\nname = "far"\nurl = "file://{target}"\n')
    replicator("target", "init", mounted.volume)
    replicator("push", "--once", mounted.volume)
    run_snapfs("hold", mounted.path, "1")
    with open(mounted.volume / "volume.toml", "a", encoding="utf-8") as settings:
        settings.write("retention = {last = 2, minimum_good = 1}\n")
    assert pruned(mounted.volume, "--target", "far", "--dry-run")["dropped"] == [2]
    replicator("lock", target, "14d")
    found = pruned(f"file://{target}", "-o", "last=1", "-o", "minimum_good=1")
    assert found["dropped"] == []
    assert all(each["locked_until_ns"] for each in found["snapshots"][:-1])
    assert "locked there until 20" in run_snapfs("prune", f"file://{target}", "-o", "last=1", "--dry-run").stdout
    replicator("lock", target, "0s", "--shorten")
    run_snapfs("prune", mounted.volume, "--target", "far")
    assert numbers(target) == [1, 3, 4]
    assert [each[:2] for each in kinds(target)] == [("dropped", "target")]
    assert numbers(mounted.path) == [1, 2, 3, 4]
    done = run_snapfs("prune", f"file://{target}", check=False)
    assert (done.returncode, "there is no rule" in done.stderr) == (EXIT_ENVIRONMENT, True)


def replicator(*words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "replicator", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
