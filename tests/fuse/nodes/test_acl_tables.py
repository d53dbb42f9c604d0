"""POSIX ACLs by table: what an ACL makes of a mode, a chmod of an ACL, and what a new inode inherits."""

from __future__ import annotations

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.fuse.nodes import acl
from snapfs.fuse.nodes.acl import AclEntry, Tag

TAGS = {"u": (Tag.USER_OBJ, Tag.USER), "g": (Tag.GROUP_OBJ, Tag.GROUP), "m": (Tag.MASK,), "o": (Tag.OTHER,)}


def entries(text: str) -> list[AclEntry]:
    """`u::7 u:100:6 g::5 m::7 o::4` as entries."""
    found = []
    for word in text.split():
        kind, who, permissions = word.split(":")
        tags = TAGS[kind]
        found.append(AclEntry(tags[-1] if who else tags[0], int(permissions, 8), int(who) if who else acl.NO_ID))
    return found


def value(text: str) -> bytes:
    return acl.encode(entries(text))


def test_the_layout_is_the_kernels() -> None:
    raw = value("u::7 u:1000:6 g::5 m::7 o::4")
    assert raw == bytes.fromhex(
        "02000000 0100 0700 ffffffff 0200 0600 e8030000 0400 0500 ffffffff 1000 0700 ffffffff 2000 0400 ffffffff"
    )


@pytest.mark.parametrize(
    ("text", "mode", "new_mode", "stored"),
    [
        ("u::7 g::5 o::4", 0o644, 0o754, False),  # grants no more than the mode
        ("u::6 g::0 o::0", 0o6777, 0o6600, False),  # setuid and setgid are not the ACL's
        ("u::7 u:100:6 g::5 m::6 o::4", 0o600, 0o764, True),  # the mask is what the group bits show
        ("u::7 g::5 m::1 o::0", 0o600, 0o710, True),
        ("u::6 g::4 g:7:7 m::7 o::0", 0o1777, 0o1670, True),
    ],
)
def test_a_new_access_acl_sets_the_mode(text: str, mode: int, new_mode: int, stored: bool) -> None:
    assert acl.set_access(value(text), mode) == (new_mode, value(text) if stored else None)


@pytest.mark.parametrize(
    ("text", "mode", "changed"),
    [
        ("u::7 u:100:6 g::5 m::6 o::4", 0o640, "u::6 u:100:6 g::5 m::4 o::0"),  # the group itself keeps its entry
        ("u::7 g::5 o::4", 0o640, "u::6 g::4 o::0"),
    ],
)
def test_chmod_rewrites_the_acl(text: str, mode: int, changed: str) -> None:
    assert acl.chmod(value(text), mode) == value(changed)


FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR


@pytest.mark.parametrize(
    ("default", "mode", "umask", "new_mode", "access"),
    [
        (None, FILE | 0o666, 0o022, FILE | 0o644, None),
        (None, DIRECTORY | 0o1777, 0o077, DIRECTORY | 0o1700, None),
        ("u::7 g::5 o::0", FILE | 0o666, 0o777, FILE | 0o640, None),  # the umask is ignored
        ("u::7 g::7 o::7", DIRECTORY | 0o755, 0o077, DIRECTORY | 0o755, None),
        ("u::7 u:100:7 g::5 m::7 o::5", FILE | 0o640, 0o077, FILE | 0o640, "u::6 u:100:7 g::5 m::4 o::0"),
        ("u::7 u:100:7 g::5 m::5 o::5", DIRECTORY | 0o2777, 0, DIRECTORY | 0o2755, "u::7 u:100:7 g::5 m::5 o::5"),
        ("u::7 u:100:7 g::5 m::3 o::5", FILE | 0o060, 0, FILE | 0o020, "u::0 u:100:7 g::5 m::2 o::0"),
    ],
)
def test_what_a_new_inode_inherits(
    default: str | None, mode: int, umask: int, new_mode: int, access: str | None
) -> None:
    raw = None if default is None else value(default)
    inherited = acl.inherit(raw, mode, umask)
    assert inherited.mode == new_mode
    assert inherited.access == (None if access is None else value(access))
    assert inherited.default == (raw if stat.S_ISDIR(mode) else None)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x02\0\0",
        b"\x01\0\0\0" + value("u::7 g::5 o::4")[4:],  # another version
        value("u::7 g::5 o::4") + b"\0",
        value("u::7 g::5"),  # nothing for others
        value("u::7 u:100:7 g::5 o::4"),  # a named user without a mask
        value("u::7 u::7 g::5 o::4"),
        value("u::7 g::5 o::4").replace(b"\x20\0", b"\x21\0"),  # no such tag
        acl.encode([AclEntry(Tag.USER_OBJ, 8), AclEntry(Tag.GROUP_OBJ, 0), AclEntry(Tag.OTHER, 0)]),
    ],
)
def test_a_malformed_acl_is_einval(raw: bytes) -> None:
    with pytest.raises(OSError, match=".") as caught:
        acl.parse(raw)
    assert caught.value.errno == errno.EINVAL


bits = st.integers(0, 7)


@given(bits, bits, bits, bits, st.integers(0, 0o7777))
def test_mode_and_acl_agree_after_any_chmod(owner: int, group: int, mask: int, other: int, mode: int) -> None:
    before = value(f"u::{owner} u:9:7 g::{group} m::{mask} o::{other}")
    after = acl.chmod(before, mode)
    assert acl.mode_of(acl.parse(after), mode) == mode
    assert acl.set_access(after, mode) == (mode, after)
