"""What `monitoring/` ships: rules that do what they promise, and a dashboard of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.settings.config import Config
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repository.repository import Repository
from tests.fakes.patience import eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.targets.mirror_process import REPLICATOR
from tests.fakes.targets.promtool import lint, needs_promtool, promtool

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring"
ALERTS = (FOLDER / "alerts.yml").read_text()
PAGE = (ROOT / "docs" / "snapfs-operations.7.md").read_text()
NAME = re.compile(r"\bsnapfs_\w+")
HAS_OBJECTIVES = "objectives" in Config.__struct_fields__


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
    return found


def expressions() -> list[str]:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@needs_promtool
def test_the_rules_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", FOLDER / "alerts.yml")
    promtool("test", "rules", FOLDER / "alerts_test.yml")


def test_each_rule_has_a_story_and_a_row_in_the_manual() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS))
    assert alerts == set(re.findall(r"alertname: (\w+)", (FOLDER / "alerts_test.yml").read_text()))
    assert alerts == set(re.findall(r"\bSnapfs\w+", PAGE))


@needs_promtool
def test_each_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    def check(texts: list[str]) -> None:
        rules = [{"record": f"expression:{at}", "expr": text} for at, text in enumerate(texts)]
        file = tmp_path / "rules.yml"
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
        promtool("check", "rules", file)

    check([text.replace("$__rate_interval", "5m") for text in expressions()])
    with pytest.raises(AssertionError):
        check(["rate(snapfs_epoch[5m]"])


def test_the_dashboard_is_whole() -> None:
    found = dashboard()
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    known = {"$" + each["name"] for each in found["templating"]["list"]} | {"$__rate_interval"}
    assert {word for text in expressions() for word in re.findall(r"\$\w+", text)} <= known
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def with_objectives(volume: Path) -> None:
    path = volume / "volume.toml"
    path.write_text(path.read_text().replace("[objectives]\n", '[objectives]\nrpo = "30s"\nrto = "60s"\n'))


@pytest.fixture
def exposition(snapfs: Any, volume_dir: Path, mountpoint: Path, tmp_path: Path) -> Iterator[str]:
    """All that is scraped of a host: a mounted volume with a snapshot, objectives, a drill and a target that has it."""
    snapfs("mount", volume_dir, mountpoint)
    snapfs("umount", mountpoint)
    with_objectives(volume_dir)
    with open(volume_dir / "volume.toml", "a", encoding="utf-8") as settings:
        settings.write(f'\n[[replication.target]]\nurl = "file://{tmp_path}/target"\n')
    volume = Volume.open(str(volume_dir), Disk())
    repository = Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), Disk())
    repository.record_event("drilled", snapshot=1, passed=True, recovery_s=12.5)
    repository.close()
    init = [*REPLICATOR, "target", "init", str(volume_dir)]
    subprocess.run(init, check=True, capture_output=True, timeout=120)
    snapfs("mount", volume_dir, mountpoint)
    snapfs("snapshot", mountpoint)
    agent = AgentProcess(volume_dir)
    agent.start()
    try:
        eventually(lambda: "metrics at" in agent.log(), "the endpoint")
        newest = b"snapfs_replicator_newest_snapshot_age_seconds{"
        eventually(lambda: newest in agent.get("/metrics")[1], "a replicated snapshot")
        yield agent.get("/metrics")[1].decode()
    finally:
        agent.end()


@needs_promtool
def test_each_metric_of_rules_and_dashboard_is_there(exposition: str) -> None:
    lint(exposition)
    shown = set(re.findall(r"^(snapfs_\w+)(?:\{| )", exposition, re.MULTILINE))
    wanted = {name for text in expressions() for name in NAME.findall(text)}
    wanted |= {name for each in dashboard()["templating"]["list"] for name in NAME.findall(str(each["query"]))}
    rules = re.findall(r"expr: (.*?)\n +(?:for|labels):", ALERTS, re.DOTALL)
    wanted |= {name for text in rules for name in NAME.findall(text)}
    assert len(wanted) > 30
    unset = set() if HAS_OBJECTIVES else {name for name in wanted if re.match("snapfs_r[pt]o_", name)}
    assert wanted - shown == unset
    assert "snapfs_drill_recovery_seconds{" in exposition
