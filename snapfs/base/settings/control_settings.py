"""The settings of `.snapfs/control`: who may give which command, beside the owner and root."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from msgspec import Meta

VERBS: Final = frozenset({
    "bound", "drop", "gate", "group", "hold", "pause", "release", "resume", "rollback", "snapshot", "sync", "verify",
})  # fmt: skip
"""The commands that a mount understands, for who has none to ask."""


def no_such_command(verb: str, verbs: Collection[str] = VERBS) -> str:
    """What is wrong with control.allow. Pure."""
    return f"there is no command `{verb}`: there are {', '.join(sorted(verbs))}"


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may give which command."""

    allow: Annotated[
        dict[str, tuple[str, ...]],
        Meta(
            description='Who may give which command to .snapfs/control: {snapshot = ["backup", "@operators"], rollback '
            "= []}, by the names or numbers of users, and of groups behind an @. root may in any case; of a command "
            "that is named here only those who are listed, so [] leaves it to root; of one that is not named the "
            "owner as well, and of `group` those who may `snapshot`. Empty, because the owner of the state may do with "
            "it what they like."
        ),
    ] = {}
