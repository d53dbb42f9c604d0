"""The agent's manual page lists all there is, and nothing that is not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import tomlkit

from replicator.agent.agent import Agent
from replicator.agent.agent_metrics import AgentMetrics
from replicator.agent.agent_status import Link, TargetStatus
from replicator.commands.push_commands import COMMANDS
from snapfs.base.settings import settings_template

PAGE = Path(__file__).resolve().parents[3] / "docs" / "snapfs-agent.1.md"


def table() -> str:
    lines = ["| setting of a target | default | what |", "| --- | --- | --- |"]
    for name, reason, default in settings_template.target_settings():
        shown = "{}" if default == {} else tomlkit.item(default).as_string()
        lines.append(f"| `{name}` | `{shown}` | {reason} |")
    return "\n".join(lines) + "\n"


def test_every_setting_of_a_target_is_there() -> None:
    """`SNAPFS_GOLDEN=write` puts them there."""
    begin, end = "an object store: immutable segments", "`fetch` copies what"
    text = PAGE.read_text()
    head, rest = text[: text.index("\n\n", text.index(begin)) + 2], text[text.index(end) :]
    wanted = f"{head}{table()}\n{rest}"
    if os.environ.get("SNAPFS_GOLDEN") == "write":
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted


def test_every_option_mode_and_state_is_there() -> None:
    text = PAGE.read_text()
    known = {"--log-format", "--verbose"}
    for command in COMMANDS:
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[0] in known or option.opts[0] in text, (command.name, option.opts)
    for word in (*(link.value for link in Link), "async", "bounded", "sync"):
        assert f"`{word}`" in text


def test_the_metrics_it_names_are_those_there_are() -> None:
    metrics = AgentMetrics()
    agent = Agent(["/volume"])
    metrics.show(agent)
    agent.volumes[0].targets.append(TargetStatus("target", "file:///x"))
    metrics.counters("/volume", "target")
    made = set(re.findall(r"^# TYPE (\w+)", metrics.render().decode(), re.MULTILINE))
    assert set(re.findall(r"`(snapfs_replicator_\w+)`", PAGE.read_text())) == made
