"""control.allow: who may give which command, by user and group; and the record of who gave it."""

from __future__ import annotations

import errno
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.base.errors import UserError
from snapfs.base.settings.control_settings import VERBS
from snapfs.control.command_records import record_of
from snapfs.control.command_state import BusyWork
from snapfs.control.control_commands import Command, Commands, Verb
from snapfs.control.gate_commands import GateCommands
from snapfs.control.group_commands import GroupCommands
from snapfs.control.live_tree_commands import LiveTreeCommands
from snapfs.control.permissions import Allowed, Permissions
from snapfs.control.snapshot_commands import SnapshotCommands
from snapfs.control.verify_commands import VerifyCommands
from snapfs.fuse.virtual.caller import Caller

OWNER, NOBODY = 1000, 65534
ALLOWED = Permissions(
    {"snapshot": Allowed(frozenset({34}), frozenset({50})), "rollback": Allowed(frozenset(), frozenset())}
)
TABLE = [
    (ALLOWED, "snapshot", Caller(0, 0, 1), True),
    (ALLOWED, "rollback", Caller(0, 0, 1), True),
    (ALLOWED, "snapshot", Caller(34, 34, 1), True),
    (ALLOWED, "snapshot", Caller(35, 35, 1, frozenset({35, 50})), True),
    (ALLOWED, "snapshot", Caller(35, 35, 1, frozenset({35})), False),
    (ALLOWED, "snapshot", Caller(OWNER, OWNER, 1), False),  # it is named, and the owner is not in it
    (ALLOWED, "rollback", Caller(OWNER, OWNER, 1), False),
    (ALLOWED, "group", Caller(OWNER, OWNER, 1), False),  # a member's part of a group's cut is a snapshot
    (ALLOWED, "group", Caller(34, 34, 1), True),
    (Permissions({"drop": Allowed(frozenset({34}), frozenset())}), "group", Caller(34, 34, 1), False),
    (Permissions({"group": Allowed(frozenset({34}), frozenset())}), "group", Caller(34, 34, 1), True),
    (Permissions({"group": Allowed(frozenset({34}), frozenset())}), "snapshot", Caller(34, 34, 1), False),
    (ALLOWED, "drop", Caller(OWNER, OWNER, 1), True),
    (ALLOWED, "drop", Caller(34, 34, 1), False),
    (ALLOWED, "drop", None, False),
    (Permissions({}), "drop", None, True),
    (Permissions({}), "drop", Caller(OWNER, OWNER, 1), True),
    (Permissions({}), "drop", Caller(34, 34, 1), False),
]


@pytest.mark.parametrize(("permissions", "verb", "caller", "may"), TABLE)
def test_the_rule(permissions: Permissions, verb: str, caller: Caller | None, may: bool) -> None:
    assert permissions.permits(verb, caller, OWNER) is may


def test_names_are_looked_up_once_and_unknown_ones_allow_nobody() -> None:
    made = Permissions.of({"drop": ("nobody", "@0", "77", "no-such-user", "@no-such-group")}, {"drop"}, "volume.toml")
    nobody = pwd.getpwnam("nobody").pw_uid
    assert made._allowed == {"drop": Allowed(frozenset({nobody, 77}), frozenset({0}))}
    assert made.open_to_others
    assert not Permissions.of({"drop": ()}, {"drop"}, "volume.toml").open_to_others
    with pytest.raises(UserError, match=r"volume.toml: there is no command `rolback`"):
        Permissions.of({"rolback": ()}, {"rollback"}, "volume.toml")


def test_all_commands_are_known_without_a_mount() -> None:
    parts: Any = SimpleNamespace(repository=None)  # none is looked at before a command comes
    kinds = (
        SnapshotCommands(parts, BusyWork(), lambda verb, caller: True), VerifyCommands(parts, BusyWork()),
        LiveTreeCommands(parts), GroupCommands(parts), GateCommands(parts),
    )  # fmt: skip
    assert {verb for kind in kinds for verb in kind.verbs()} == VERBS


@pytest.mark.parametrize("line", ["rollback 1", "'rollback' 1", 'roll"back" 1', r"rollb\ack 1", "rollback"])
def test_no_way_of_writing_a_verb_leads_around_it(line: str) -> None:
    async def nothing(command: Command) -> dict[str, Any]:
        return {}

    counted: list[tuple[str, str]] = []
    verbs = {"rollback": Verb("rollback REF", nothing, range(1, 2)), "sync": Verb("sync", nothing, range(1))}
    commands = Commands(verbs, lambda *failed: None, lambda verb, result: counted.append((verb, result)))
    refused = commands.refused(["sync", line], lambda verb: verb == "sync")
    assert refused is not None
    assert (refused.errno, counted) == (errno.EPERM, [("rollback", "refused")])
    assert json.loads(refused.line)["errno"] == "EPERM"
    assert commands.refused(["sync", "frob", "it's"], lambda verb: verb == "sync") is None


def test_a_record_has_who_and_what() -> None:
    command = Command("rollback", ["7"], frozenset({"force"}), caller=Caller(34, 50, 9, frozenset({1})))
    assert record_of(command, {"snapshot": {"number": 8}}) == {
        "command": "rollback", "arguments": ["7"], "flags": ["force"], "snapshot": 8,
        "by": {"uid": 34, "gid": 50, "pid": 9},
    }  # fmt: skip
    assert record_of(Command("drop", []), {"dropped": None}) == {"command": "drop", "by": {}}


def as_user(uid: int, mountpoint: Path, line: str) -> int:
    """Write a command as this user; its errno. The folders above the mount need not let them in."""
    code = (
        "import os, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n"
        "try:\n"
        "    control = os.open('.snapfs/control', os.O_WRONLY, dir_fd=int(sys.argv[2]))\n"
        "    os.write(control, sys.argv[3].encode())\n"
        "except OSError as error:\n    print(error.errno)\nelse:\n    print(0)\n"
    )
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        words = [sys.executable, "-c", code, str(uid), str(root), line]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, pass_fds=(root,))
    finally:
        os.close(root)
    return int(done.stdout)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: commands are given as other users")
def test_users_may_what_they_are_allowed(snapfs: Any, mount: Any, volume_dir: Path) -> None:
    mounted = mount()
    mounted.path.chmod(0o755)
    assert as_user(NOBODY, mounted.path, "snapshot") == errno.EACCES
    snapfs("umount", mounted.path)
    path = volume_dir / "volume.toml"
    settings = f'[control]\nallow = {{snapshot = ["{NOBODY}"], rollback = []}}\n'
    path.write_text(path.read_text().replace("[control]\n", settings))
    mounted = mount()
    assert as_user(NOBODY, mounted.path, "snapshot mine") == 0
    assert as_user(NOBODY, mounted.path, "drop mine") == errno.EPERM
    assert as_user(NOBODY, mounted.path, "sync\nrollback mine") == errno.EPERM
    assert as_user(77, mounted.path, "snapshot") == errno.EPERM
    assert mounted.status()["last_error"]["errno"] == "EPERM"
    mounted.command("snapshot roots")
    counted = (mounted.path / ".snapfs" / "metrics").read_text()
    assert 'snapfs_commands_total{command="rollback",result="refused"}' not in counted  # sync was refused before it
    assert 'snapfs_commands_total{command="sync",result="refused"} 1.0' in counted
    assert "you may not drop here" in (volume_dir / "daemon.log").read_text()
    lines = [json.loads(line) for line in snapfs("log", "--json", mounted.path).stdout.splitlines()]
    asked = [(each["kind"], each["number"], each["by"]["uid"]) for each in lines if "by" in each]
    assert asked == [("snapshot", 1, NOBODY), ("snapshot", 2, 0)], "one act is one line"


def test_a_command_that_there_is_not_keeps_the_volume_from_being_mounted(
    snapfs: Any, volume_dir: Path, mountpoint: Path
) -> None:
    snapfs("mount", volume_dir, mountpoint)
    snapfs("umount", mountpoint)
    path = volume_dir / "volume.toml"
    path.write_text(path.read_text().replace("[control]\n", "[control]\nallow = {rolback = []}\n"))
    refused = snapfs("mount", volume_dir, mountpoint, check=False)
    assert refused.returncode == 3
    assert "there is no command `rolback`" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
