"""The cuts of a group, found in the records of its members: pure functions.

A cut is *whole* where every member that its records name has a good snapshot of it. What is not whole is not offered:
a member alone may lack what another one relies on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.log.snapshot_records import GOOD, CutFacts, GroupCut, SnapshotRecord

WAS_GIVEN_UP: Final = "the cut of its group was given up"


@dataclass(frozen=True, slots=True)
class GroupInstant:
    """One cut of a group: what each member, by its name, has of it. `missing`: members without a good one."""

    group: GroupCut
    name: str | None
    cut_time_ns: int
    snapshots: Mapping[str, SnapshotNumber]
    missing: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.missing


def instants(group: str, records: Mapping[str, Iterable[SnapshotRecord]]) -> list[GroupInstant]:
    """The cuts of `group` in the records of places, by the id of each place's volume; oldest first."""
    found: dict[str, dict[str, SnapshotRecord]] = {}
    for volume_id, its in records.items():
        for record in its:
            cut = record.cut.group
            if (
                cut is not None
                and cut.group == group
                and not record.branch
                and (volume_id in dict(cut.members).values())
            ):
                found.setdefault(cut.cut, {})[volume_id] = record
    return sorted((_instant(each) for each in found.values()), key=lambda instant: instant.cut_time_ns)


def _instant(by_id: Mapping[str, SnapshotRecord]) -> GroupInstant:
    first = next(iter(by_id.values()))
    assert first.cut.group is not None
    good = {volume_id: record for volume_id, record in by_id.items() if record.state == GOOD}
    members = first.cut.group.members
    return GroupInstant(
        first.cut.group,
        first.name,
        min(record.cut_time_ns for record in by_id.values()),
        {name: good[volume_id].number for name, volume_id in members if volume_id in good},
        tuple(name for name, volume_id in members if volume_id not in good),
    )


def chosen(found: list[GroupInstant], reference: str | None) -> GroupInstant:
    """The cut that is meant: the newest whole one, or by name or beginning of its id (4 digits at least). UserError if
    there is none, or it is not whole."""
    if reference is None:
        whole = [each for each in found if each.is_whole]
        if not whole:
            raise UserError("no cut of this group is whole here" if found else "this group has no cut yet")
        return whole[-1]
    meant = [each for each in found if each.name == reference]
    if not meant and len(reference) >= 4:
        meant = [each for each in found if each.group.cut.startswith(reference)]
    if not meant:
        raise UserError(f"this group has no cut {reference}: `snapfs group show` lists those there are")
    if not meant[-1].is_whole:
        raise UserError(f"cut {reference} is not whole here: {', '.join(meant[-1].missing)} has none")
    return meant[-1]


def misplaced(instant: GroupInstant, ids: Mapping[str, str]) -> list[str]:
    """Members whose place has another volume than the cut's. `ids`: of the volumes at the places, by member."""
    return [name for name, volume_id in instant.group.members if ids.get(name, volume_id) != volume_id]


class GroupRecord(Protocol):
    """The part of a snapshot's record that is looked at."""

    @property
    def number(self) -> SnapshotNumber: ...
    @property
    def cut(self) -> CutFacts: ...


@dataclass(frozen=True, slots=True)
class OtherMember:
    """Another volume of the group. `kept`: ids of the cuts that its own rules keep there, None if that is not known."""

    volume_id: str
    kept: frozenset[str] | None


def kept_for_others(own: Iterable[GroupRecord], others: Iterable[OtherMember]) -> dict[SnapshotNumber, str]:
    """Our snapshots that another member's own rules keep a part of, with the reason. Pure."""
    by_id, found = {each.volume_id: each for each in others}, dict[SnapshotNumber, str]()
    for record in own:
        group = record.cut.group
        for name, volume_id in group.members if group is not None else ():
            other = by_id.get(volume_id)
            if group is None or other is None:
                continue
            if other.kept is None:
                found.setdefault(record.number, f"it is a member of group {group.group}, and {name} cannot be read")
            elif group.cut in other.kept:
                found[record.number] = f"it is a member of group {group.group}, whose member {name} stays"
                break
    return found
