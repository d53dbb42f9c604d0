"""The other members of a group at a target: whose part of a cut stays there by the rules for it.

The rules for a target look at one volume. A cut of a group is of use as long as all members have their part, so what
they drop is compared with what the rules for the other members keep at the same place: a target of the same name, or
beside ours (https://mirror/pg and https://mirror/web).

Invariants:
1. What keeps one for the sake of the others does not count there, or two would keep each other for ever.
2. A member whose part is not known keeps ours: its folder cannot be read, or this process has not opened its target.
3. A member that is in no group with ours on this host (base/volumes/group_file.py), or is not replicated to this place,
   keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from posixpath import dirname
from urllib.parse import urlsplit

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.base.settings.replication_settings import TargetSettings, plain_url, target_name
from snapfs.base.volumes import group_file
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.group_cuts import OtherMember

MemberTarget = tuple[str, str]
"""Id of the volume, and the name of its target; "": not known."""
KeptCuts = Callable[[], frozenset[str] | None]


class GroupTargets:
    """The targets that a process feeds, of all its volumes. Used in the loop's thread."""

    def __init__(self) -> None:
        self._kept: dict[MemberTarget, KeptCuts] = {}

    def register(self, target: MemberTarget, kept: KeptCuts) -> None:
        """`kept`: the cuts whose part the rules for this target keep there; None while that is not known."""
        self._kept[target] = kept

    def forget(self, target: MemberTarget) -> None:
        self._kept.pop(target, None)

    def others(self, targets: Iterable[MemberTarget]) -> list[OtherMember]:
        """What is known of these now."""
        return [OtherMember(each[0], self._kept[each]() if each in self._kept else None) for each in targets]


def members_beside(volume_id: str, target: TargetSettings) -> list[MemberTarget]:
    """The targets of other members, of groups that this volume is in, at the same place. Raises OSError, SnapfsError
    where it is not known what groups there are. Blocks."""
    others = group_file.others_with(volume_id)
    return sorted({each for member in others for each in _targets_of(member, target)})


def _targets_of(member: group_file.GroupVolume, beside: TargetSettings) -> list[MemberTarget]:
    try:
        volume = Volume.open(member.volume, Disk())
    except (OSError, SnapfsError):
        return [(member.volume_id, "")]
    if volume.volume_id != member.volume_id:
        return [(member.volume_id, "")]
    there = [each for each in volume.config.replication.target if is_beside(each, beside)]
    return [(member.volume_id, target_name(each)) for each in there]


def is_beside(one: TargetSettings, other: TargetSettings) -> bool:
    """Whether the targets of two volumes are at one place."""
    return target_name(one) == target_name(other) or _place(one) == _place(other)


def _place(target: TargetSettings) -> tuple[str, str, str]:
    url = urlsplit(plain_url(target.url))
    return url.scheme, url.netloc, dirname(url.path.rstrip("/"))
