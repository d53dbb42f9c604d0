"""What the programs print with --json, `.snapfs/status` and the control file have the form that their schemas name.

The schemas are strict, so a field that is added, renamed or left out fails here. Real commands on real mounts.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from replicator.commands.replicator_cli import cli as replicator_cli
from replicator.commands.target_commands import mark_new
from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.commands.cli import cli
from snapfs.commands.schemas import schema_files
from tests.conftest import Mounted, run_snapfs, take_down
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "snapfs-interfaces.7.md").read_text()
LINES = {"audit", "diff", "find", "log", "log-line", "status-watch", "undelete"}
"""Outputs of a document a line."""


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema_files.schema(name))


def judge(name: str, found: Any) -> Any:
    """Fail where the form is another one; what was found."""
    for error in validator(name).iter_errors(found):
        worst = jsonschema.exceptions.best_match([error])
        pytest.fail(f"{name}: {list(worst.absolute_path)}: {worst.message[:500]}", pytrace=False)
    return found


def output(name: str, text: str) -> Any:
    """Of a command that has printed it: checked."""
    if name not in LINES:
        return judge(name, json.loads(text))
    assert text
    return [judge(name, json.loads(line)) for line in text.splitlines()]


def snapfs(name: str, *words: str | Path, code: int = 0) -> Any:
    done = run_snapfs(*words, "--json", check=False)
    assert done.returncode == code, done.stderr
    return output(name, done.stdout)


def replicator(name: str, *words: str | Path, code: int = 0) -> Any:
    command = [*REPLICATOR, *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stderr
    return output(f"replicator-{name}", done.stdout)


def control(mounted: Mounted, line: str) -> Any:
    return judge(f"control-{line.split()[0]}", mounted.command(line))


@pytest.fixture
def history(mounted: Mounted) -> Mounted:
    """Two snapshots, and what came after them."""
    (mounted.path / "kept").write_bytes(b"k" * 100_000)
    (mounted.path / "lines").write_text("one\n")
    (mounted.path / "gone").write_text("soon")
    (mounted.path / "link").symlink_to("kept")
    snapfs("snapshot", "snapshot", mounted.path, "first")
    (mounted.path / "lines").write_text("one\ntwo\n")
    (mounted.path / "gone").unlink()
    Path(os.fsdecode(bytes(mounted.path) + b"/odd \xff")).write_text("x")
    (mounted.path / "kept").rename(mounted.path / "renamed")
    snapfs("snapshot", "snapshot", mounted.path)
    (mounted.path / "after").write_text("not in a snapshot")
    return mounted


def test_what_shows_a_history(history: Mounted, tmp_path: Path) -> None:
    place = history.path
    assert [each["name"] for each in snapfs("list", "list", place)] == ["first", None]
    snapfs("show", "show", place, "first")
    for more in ([], ["--stat"], ["--patch"]):
        snapfs("diff", "diff", *more, place, "1", "2")
    snapfs("find", "find", place, "**")
    snapfs("undelete", "undelete", place, "gone")
    for more in ([], ["1-2"], ["--by-path"]):
        snapfs("du", "du", place, *more)
    snapfs("verify", "verify", place)
    snapfs("verify", "verify", "--repair", place)
    snapfs("hold", "hold", place, "2", "--why", "a reason")
    snapfs("list", "list", place)
    snapfs("release", "release", place, "2")
    snapfs("drop", "drop", "--dry-run", place, "first")
    snapfs("prune", "prune", "--dry-run", "-o", "last=1", place)
    snapfs("log", "log", place)
    snapfs("audit", "audit", place)
    snapfs("audit-check", "audit", "--check", place)
    snapfs("drill", "drill", place, "--check", "files", "--timeout", "5m")
    snapfs("restore", "restore", place, "first", tmp_path / "restored")
    snapfs("export", "export", place, "first", tmp_path / "exported")
    snapfs("clone", "clone", place, "first", tmp_path / "clone")
    snapfs("fetch", "fetch", f"file://{history.volume}", tmp_path / "fetched")


def test_what_shows_a_volume(history: Mounted) -> None:
    place, volume = history.path, history.volume
    judge("mount-status", history.status())
    snapfs("status", "status", place)
    snapfs("volumes", "volumes", place)
    snapfs("doctor", "doctor", place)
    snapfs("configcheck", "configcheck", volume)
    snapfs("upgrade", "upgrade", place)
    watching = [*run_snapfs.__globals__["SNAPFS"], "status", "--watch", "--interval", "0.05s", "--json", str(place)]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        output("status-watch", watch.stdout.readline() + watch.stdout.readline())
        watch.terminate()
    done = run_snapfs("drop", "--json", place, "no-such", check=False)
    assert (done.returncode, judge("error", json.loads(done.stderr))["exit_code"]) == (3, 3)
    snapfs("rollback", "rollback", "--force", place, "first")
    run_snapfs("umount", place)
    snapfs("rollback", "rollback", volume, "2")
    snapfs("verify", "verify", "--repair", volume)
    snapfs("status", "status", volume)
    snapfs("volumes", "volumes", volume)


def test_forks_groups_and_moves(mounted: Mounted, tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_GROUPS", str(tmp_path / "groups"))
    snapfs("fork", "fork", mounted.path, other)
    snapfs("status", "status", other)
    run_snapfs("group", "create", "g", mounted.path, other)
    snapfs("group-list", "group", "list")
    snapfs("snapshot-group", "snapshot", "--group", "g", "cut")
    snapfs("group-show", "group", "show", "g")
    snapfs("list", "list", other)
    run_snapfs("umount", "--discard", other)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "file").write_text("bytes")
    snapfs("import", "import", "--dry-run", tmp_path / "state", tmp_path / "moved")
    snapfs("import", "import", "--prepare", tmp_path / "state", tmp_path / "moved")
    snapfs("import", "import", tmp_path / "state", tmp_path / "moved")
    try:
        snapfs("adopt", "adopt", tmp_path / "state", tmp_path / "adopted")
        run_snapfs("snapshot", tmp_path / "state")
        snapfs("adopt", "adopt", "--undo", tmp_path / "state")
    finally:
        take_down(tmp_path / "state")


def test_the_replies_of_the_control_file(history: Mounted) -> None:
    control(history, "snapshot made")
    control(history, "hold first for=1h why=tried")
    control(history, "release first")
    control(history, "drop first")
    control(history, "verify")
    control(history, "verify 2 repair")
    control(history, 'gate drilled \'{"snapshot": 2, "passed": true}\'')
    control(history, "sync")
    control(history, "bound off")
    cut = {"group": "g", "cut": "0" * 32, "members": [["a", history.status()["volume_id"]]]}
    control(history, f"group prepare '{json.dumps(cut)}' name=grouped")
    for step in ("ready", "close", "settle", "cut", "seal", "forget"):
        control(history, f"group {step} {'0' * 32}")
    control(history, "rollback 2")
    judge("mount-status", history.status())
    fd = os.open(history.control, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.write(fd, b"no-such command")
        judge("control-error", json.loads(os.read(fd, 1 << 20)))
    finally:
        os.close(fd)


def test_a_mount_that_has_not_everything_yet(history: Mounted, tmp_path: Path, other: Path) -> None:
    run_snapfs("mount", "--from", history.volume, "-o", "hydration.background=false", tmp_path / "lazy", other)
    lazy = Mounted(tmp_path / "lazy", other)
    judge("mount-status", lazy.status())
    control(lazy, "pause")
    control(lazy, "resume")
    snapfs("status", "status", other)


@pytest.fixture
def source(tmp_path: Path, mirror: MirrorProcess) -> Iterator[SourceVolume]:
    target = {"url": f"http://127.0.0.1:{mirror.port}/pg", "name": "m", "token_file": str(tmp_path / "token")}
    made = SourceVolume(tmp_path / "source", 3, {"target": [target]})
    mark_new(str(made.path), ())
    made.grow(3, steps=3)
    yield made
    made.close()


def test_the_commands_of_the_replicator(source: SourceVolume, mirror: MirrorProcess, tmp_path: Path) -> None:
    url, root = f"http://127.0.0.1:{mirror.port}", tmp_path / "mirror"
    given = ("--token-file", tmp_path / "token")
    replicator("status", "status", source.path, code=8)
    subprocess.run([*REPLICATOR, "push", "--once", str(source.path)], check=True, capture_output=True)
    replicator("status", "status", "--max-age", "1h", source.path)
    snapfs("volumes", "volumes", source.path, code=8)
    replicator("list", "list", url, *given)
    replicator("list", "list", root)
    replicator("prune", "prune", f"{url}/pg", *given, "--rule", "last=2", "--dry-run")
    snapfs("replicator-prune", "prune", "--dry-run", "--target", "m", "-o", "last=2", source.path)
    replicator("drop", "drop", f"{url}/pg", *given, "1")
    replicator("token-create", "token", "create", "--root", root, "--grant", "pg:push+prune", "--note", "why")
    replicator("token-list", "token", "list", "--root", root)
    replicator("lock", "lock", root / "pg", "1h")
    replicator("drop", "drop", f"{url}/pg", *given, "2", code=4)
    replicator("promote", "promote", f"{url}/pg", *given)
    replicator("verify", "verify", "--root", root)


def test_the_commands_about_a_bucket_and_its_keys(source: SourceVolume, tmp_path: Path) -> None:
    with s3_server() as endpoint:
        options = {**OPTIONS, "endpoint": endpoint}
        text = ", ".join(f'{name} = "{value}"' for name, value in options.items())
        settings = Path(Volume.open(str(source.path), Disk()).toml_path)
        with settings.open("a", encoding="utf-8") as file:
            file.write(f'\n[[replication.target]]\nurl = "s3://{BUCKET}/x"\nname = "b"\noptions = {{{text}}}\n')
        subprocess.run([*REPLICATOR, "push", "--once", "--new", str(source.path)], check=True, capture_output=True)
        given = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
        replicator("fetch", "fetch", f"s3://{BUCKET}/x", tmp_path / "fetched", *given)
        replicator("status", "status", "--max-age", "1h", source.path)
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    with settings.open("a", encoding="utf-8") as file:
        file.write(f'\n[replication.encryption]\nkey_file = "{key}"\n')
    subprocess.run([*REPLICATOR, "key", "create", str(source.path)], check=True, capture_output=True)
    replicator("key-show", "key", "show", source.path)


def with_json(group: click.Group, prefix: str) -> Iterator[str]:
    """The commands that have --json, by the names of their schemas."""
    commands = group.everything() if hasattr(group, "everything") else group.commands
    for name, command in commands.items():
        if isinstance(command, click.Group):
            yield from with_json(command, f"{prefix}{name}-")
        elif any(each.name == "as_json" for each in command.params):
            yield f"{prefix}{name}"


def test_each_command_with_json_has_a_schema() -> None:
    wanted = {*with_json(cli, ""), *with_json(replicator_cli, "replicator-")}
    assert wanted <= set(schema_files.names())


def test_the_manual_names_each_schema_with_its_title() -> None:
    rows = [f"| `{name}` | {schema_files.title(name)} |" for name in schema_files.names()]
    assert [line for line in PAGE.splitlines() if line.startswith("| `") and line in rows] == rows
    part = PAGE.partition("## JSON\n")[2].partition("\n## ")[0]
    assert len([line for line in part.splitlines() if line.startswith("| `")]) == len(rows)


def loose(schema: Any) -> Iterator[str]:
    """The descriptions of what a schema leaves open."""
    if isinstance(schema, dict):
        if (
            schema.get("type") == "object"
            and "properties" in schema
            and schema.get("additionalProperties") is not False
        ):
            yield schema.get("description", "?")
        for each in schema.values():
            yield from loose(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from loose(each)


def test_schemas_are_strict_but_where_they_say_why() -> None:
    for name in schema_files.names():
        jsonschema.Draft202012Validator.check_schema(schema_files.schema(name))
        open_ = list(loose(schema_files.schema(name)))
        assert open_ == [] or name in {"log", "configcheck"}, (name, open_)


def test_a_field_that_is_not_in_the_schema_fails() -> None:
    facts = {"released": 3}
    judge("release", facts)
    with pytest.raises(pytest.fail.Exception):
        judge("release", facts | {"new": 1})
    with pytest.raises(pytest.fail.Exception):
        judge("release", {})


def test_the_command_prints_them() -> None:
    listed = run_snapfs("schema").stdout
    assert all(f"{name} " in listed for name in schema_files.names())
    assert json.loads(run_snapfs("schema", "list").stdout) == schema_files.schema("list")
    done = run_snapfs("schema", "no-such", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
