"""Who may give which command to `.snapfs/control`: the setting control.allow, and the rule.

The user is that of the process which opened the file, as for every descriptor: who passes one on passes the right on.

Invariants:
1. The rule is pure: names were looked up when the volume was mounted, so that no command waits for a user database.
2. What is not known is refused: a name that the host does not know allows nobody, a descriptor that was opened while an
   earlier daemon served counts as nobody's where control.allow says anything.
3. Who may not make a snapshot may not make one as a member of a group either (_AS).
"""

from __future__ import annotations

import grp
import logging
import pwd
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from snapfs.base.errors import UserError
from snapfs.base.settings.control_settings import no_such_command
from snapfs.fuse.virtual.caller import Caller
from snapfs.store.log.snapshot_records import AskedBy

log = logging.getLogger(__name__)
_AS: Final = {"group": "snapshot"}
"""A command that control.allow does not name is permitted as another one that does the same."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Users and groups, by number."""

    users: frozenset[int]
    groups: frozenset[int]


class Permissions:
    """The rule of one mount. `allowed`: by verb; verbs that are not in it are the owner's."""

    def __init__(self, allowed: Mapping[str, Allowed]) -> None:
        self._allowed = dict(allowed)

    @classmethod
    def of(cls, setting: Mapping[str, Collection[str]], verbs: Collection[str], where: str) -> Permissions:
        """Those of control.allow. UserError for a command that there is not; `where` names the file."""
        unknown = next((verb for verb in setting if verb not in verbs), None)
        if unknown is not None:
            raise UserError(f"{where}: {no_such_command(unknown, verbs)}; at control.allow")
        return cls({verb: _looked_up(names) for verb, names in setting.items()})

    @property
    def open_to_others(self) -> bool:
        """Whether anybody but the owner and root may have to open the file."""
        return any(each.users or each.groups for each in self._allowed.values())

    def permits(self, verb: str, caller: Caller | None, owner: int) -> bool:
        """Whether this process may give the command. `owner`: the user who owns the mount's root. Pure."""
        if caller is None:
            return not self._allowed  # the kernel has checked the mode of the file, which was the owner's then
        if caller.uid == 0:
            return True
        allowed = self._allowed.get(verb, self._allowed.get(_AS.get(verb, verb)))
        if allowed is None:
            return caller.uid == owner
        return caller.uid in allowed.users or bool(caller.groups & allowed.groups)


def _looked_up(names: Collection[str]) -> Allowed:
    users = [_number(name, False) for name in names if not name.startswith("@")]
    groups = [_number(name[1:], True) for name in names if name.startswith("@")]
    return Allowed(frozenset(n for n in users if n is not None), frozenset(n for n in groups if n is not None))


def _number(name: str, is_group: bool) -> int | None:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid if is_group else pwd.getpwnam(name).pw_uid
    except (KeyError, OSError):
        log.warning("control.allow: this host knows no %s %r: it allows nobody", "group" if is_group else "user", name)
        return None


def asker(caller: Caller | None) -> AskedBy | None:
    """Who it was, for the record of a snapshot; None if that is not known."""
    return None if caller is None else AskedBy(caller.uid, caller.gid, caller.pid)


def asked_by(caller: Caller | None) -> dict[str, int]:
    """The same, for another line of the log."""
    by = asker(caller)
    return {} if by is None else asdict(by)
