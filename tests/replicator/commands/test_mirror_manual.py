"""The mirror's manual lists all there is, and nothing that is not."""

from __future__ import annotations

import re
from pathlib import Path

import click

from replicator.commands import mirror_commands, prune_command, serve_command, target_commands, token_commands
from replicator.mirror.mirror_metrics import MirrorMetrics

COMMANDS = (
    *serve_command.COMMANDS,
    *mirror_commands.COMMANDS,
    *token_commands.COMMANDS,
    *target_commands.COMMANDS,
    *prune_command.COMMANDS,
)
ROOT = Path(__file__).resolve().parents[3]
MANUAL = (ROOT / "docs" / "snapfs-replicator.1.md").read_text()
UNIT = (ROOT / "systemd" / "snapfs-replicator.service").read_text()


def commands() -> list[click.Command]:
    groups = [command for command in COMMANDS if isinstance(command, click.Group)]
    return [*COMMANDS, *(inner for group in groups for inner in group.commands.values())]


def options() -> set[str]:
    words = {word for command in commands() for option in command.params for word in option.opts}
    return {word for word in words if word.startswith("--")}


def test_every_command_and_option_is_in_the_manual() -> None:
    for command in COMMANDS:
        assert f"### {command.name}\n" in MANUAL
    for word in options() - {"--json"}:
        assert word in MANUAL, word


def test_the_manual_and_the_unit_name_no_option_that_is_not_there() -> None:
    documented = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", MANUAL)) - {"--from"}
    assert documented <= options()
    start = next(line for line in UNIT.splitlines() if "ExecStart" in line)
    serve = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", start))
    assert serve <= options()


def test_every_metric_is_in_the_manual_under_its_name() -> None:
    text = MirrorMetrics(list).render().decode()
    known = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) - {"snapfs_mirror_request_seconds_created"}
    documented = set(re.findall(r"`(snapfs_mirror_\w+)`", MANUAL))
    assert documented == known
