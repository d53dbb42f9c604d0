"""The manual has all there is, and nothing that is not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from snapfs.base.settings import settings_template
from snapfs.commands.cli import cli

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (ROOT / "docs" / "snapfs.1.md").read_text()
CONTROL = (ROOT / "docs" / "snapfs-control.7.md").read_text()
VOLUME = (ROOT / "docs" / "snapfs-volume.5.md").read_text()
EVERYWHERE = {"--help", "--json", "--progress", "--no-progress"}


def test_every_command_and_option_is_in_the_manual() -> None:
    for name, command in cli.everything().items():
        if name != "help":
            assert re.search(rf"^### .*\b{name}\b", COMMANDS, re.MULTILINE), f"{name} has no section"
        options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
        for option in options:
            long = next(word for word in option.opts if word.startswith("--"))
            assert long in EVERYWHERE or long in COMMANDS or f"[{option.opts[0]} " in COMMANDS, f"{name} {long}"


def test_the_manual_names_no_option_that_is_not_there() -> None:
    options = [option for command in cli.everything().values() for option in command.params]
    known = {word for option in options for word in (*option.opts, *option.secondary_opts)}
    ours = re.sub(r"\| tar .*", "", COMMANDS)  # what follows a pipe has options of its own
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) - {"--now", "--system"}
    assert named <= known | {"--help"}


def settings_part() -> str:
    lines: list[str] = []
    section = ""
    for table, name, reason, default in settings_template.all_settings():
        if table != section:
            lines += ["", f"### [{table}]", "", "| setting | default | why |", "| --- | --- | --- |"]
            section = table
        lines.append(f"| `{name}` | `{settings_template.shown(default)}` | {reason} |")
    return "\n".join(lines) + "\n\n"


def test_every_setting_is_in_the_manual_with_its_default_and_its_reason() -> None:
    """`SNAPFS_GOLDEN=write` puts them there."""
    begin, end = "## SETTINGS\n", "## SEE ALSO"
    head, _, rest = VOLUME.partition(begin)
    text = head + begin + settings_part() + end + rest.partition(end)[2]
    if os.environ.get("SNAPFS_GOLDEN") == "write":
        (ROOT / "docs" / "snapfs-volume.5.md").write_text(text)
    assert text == (ROOT / "docs" / "snapfs-volume.5.md").read_text()


def test_every_metric_and_command_that_the_manual_names_is_there(mounted: Any, snapfs: Any) -> None:
    mounted.snapshot()
    snapfs("verify", mounted.path)
    mounted.command('gate drilled \'{"snapshot": 1, "passed": true}\'')
    with open(mounted.volume / "volume.toml", "a", encoding="utf-8") as settings:
        settings.write('\n[[replication.target]]\nurl = "file:///nowhere"\n')  # the metrics of targets need one
    metrics = (mounted.path / ".snapfs" / "metrics").read_text()
    for name in re.findall(r"`(snapfs_\w+)`", CONTROL):
        assert re.search(rf"^{name}(_bucket)?(\{{.*\}})? ", metrics, re.MULTILINE), name
    try:
        mounted.command("no-such-command")
    except OSError:
        facts = mounted.status()
    verbs = set(facts["last_error"]["message"].partition("there are ")[2].split(", "))
    named = set(re.findall(r"^\| `(\w+)", CONTROL, re.MULTILINE))
    assert verbs == {word for word in named if not word.startswith("snapfs_")}


def test_the_readme_names_only_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for tool in re.findall(r"\btools/\w+", text):
        assert (ROOT / tool).exists(), tool
