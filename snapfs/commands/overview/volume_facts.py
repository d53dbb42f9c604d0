"""What is known of each volume of this host, mounted or not: the same facts in the same form, for people and JSON.

A mounted volume's facts are its daemon's status; those of any other are read from its folder. Each volume is looked at
by a process of its own, all at the same time (bounded_look.py): one that hangs, or whose disk does, takes only its own
facts along.

Invariant: nothing is changed, and no lock is held.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.base.settings.config import encode
from snapfs.base.settings.replication_settings import plain_url, target_name
from snapfs.base.settings.units import parse_seconds
from snapfs.base.volumes.fork_file import read_fork
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import STANDBY_FILE
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.overview.attention import problems
from snapfs.commands.overview.known_volumes import KnownVolume
from snapfs.commands.support import output
from snapfs.commands.support.bounded_look import WAIT_S, BoundedLook, NoAnswerError
from snapfs.commands.support.locate import VolumeLocation, locate
from snapfs.control.mount_status import fork_facts
from snapfs.daemon.supervision.supervisor_status import last_words
from snapfs.store.gates.gates import drill_facts

_EMPTY: Final[dict[str, Any]] = {
    "volume": "", "id": None, "state": "unknown", "ok": False, "problems": [], "mountpoint": None, "wanted_at": "",
    "named_by": "", "held_by": None, "generation": None, "snapshots": None, "damaged_snapshots": 0, "newest": None,
    "replicated": None, "mode": "async", "bound": "30s", "targets": [], "objectives": None, "space": {},
    "snapshot_failing": None, "overdue_s": 0.0, "fenced": None, "host": {}, "stray_damage": False,
    "daemon_died": None, "error": None, "drill": None, "fork": None,
}  # fmt: skip
_NO_SPACE: Final = {"store_bytes": 0, "available_bytes": 0, "size_bytes": 0}


def look_at(volumes: Sequence[KnownVolume], wait_s: float = WAIT_S) -> list[dict[str, Any]]:
    """The facts of each, in the order given. Raises nothing of what is wrong with one: that is its `error`."""
    looks = [BoundedLook(functools.partial(facts_of, each)) for each in volumes]
    end = time.monotonic() + wait_s
    return [_completed(each, look, end) for each, look in zip(volumes, looks, strict=True)]


def _completed(known: KnownVolume, look: BoundedLook, end: float) -> dict[str, Any]:
    try:
        found: dict[str, Any] = look.answer(end)
    except NoAnswerError:
        found = {"error": "neither its daemon nor its disk answers"}
    except SnapfsError as error:
        found = {"error": f"the look at it failed: {error}"}
    place = {
        "volume": known.path, "named_by": known.named_by, "mountpoint": known.mountpoint if known.is_mounted else None,
        "wanted_at": known.mountpoint if known.is_wanted else "",
    }  # fmt: skip
    facts = _EMPTY | place | found
    facts["problems"] = problems(facts)
    return facts | {"ok": not facts["problems"]}


def facts_of(known: KnownVolume) -> dict[str, Any]:
    """Those of one volume, looked at by this process: a daemon or disk that hangs is waited for."""
    try:
        where = locate(known.mountpoint) if known.is_mounted else locate(known.path)
        return _of_mounted(where) if where.mountpoint is not None else _of_folder(where)
    except SnapfsError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"it cannot be read: {error.strerror or error}"}


def _of_mounted(where: VolumeLocation) -> dict[str, Any]:
    status = where.status()
    replication, last = status["replication"], status["last_snapshot"]
    targets = [each for each in replication.get("targets", []) if "state" in each]
    settings = status["settings"]
    replicated = _replicated(targets, int(settings["replication"]["copies"]))
    dirty = bool(status["dirty"]["files"])
    return {
        "state": "mounted",
        "mountpoint": status["mountpoint"],
        "id": status["volume_id"],
        "generation": status["generation"],
        "snapshots": status["snapshots"],
        "damaged_snapshots": status.get("damaged_snapshots", 0),  # a daemon of 0.1 does not have it
        "newest": last and {"number": last["number"], "cut_time_ns": last["cut_time_ns"], "age_s": last["age_s"]},
        "replicated": replicated,
        **_replication_settings(settings),
        "targets": [_target_facts(each) for each in targets],
        "objectives": _judged(status.get("objectives"))
        or objectives(settings, replicated, is_all_there=not dirty and _are_current(targets)),
        "space": space_of(where.volume_path),
        "snapshot_failing": status.get("snapshot_failing"),
        "overdue_s": status.get("overdue_s", 0.0),
        "fenced": status.get("fenced"),
        "host": status.get("host") or {},
        "drill": status.get("drill"),
        "fork": status.get("fork"),
        "stray_damage": any(each["damage"] for each in status.get("stray_files", [])),
    }


def _of_folder(where: VolumeLocation) -> dict[str, Any]:
    volume = where.volume()
    holder = lock_holder(volume.path)
    state = "standby" if os.path.exists(os.path.join(volume.path, STANDBY_FILE)) else "unmounted"
    if where.is_dead:
        state = "dead"
    elif holder and state == "unmounted":
        state = "in use"  # mounted in another mount namespace, or served by a mirror
    common = {
        "state": state, "mountpoint": None, "held_by": holder, "id": volume.volume_id, "generation": volume.generation,
        "daemon_died": last_words(volume.path) if where.is_dead else None, "space": space_of(volume.path),
        "fork": fork_facts(read_fork(volume.path)),
    }  # fmt: skip
    settings = encode(volume.config)
    if volume.holds_ciphertext or not os.listdir(volume.store_dir):
        return common | {"snapshots": None if volume.holds_ciphertext else 0} | _replication_settings(settings)
    with where.repository() as repository:
        records, drill = repository.snapshots(), repository.catalog.last_drill
    targets = _standings(volume, records)
    replicated, now_ns = _replicated(targets, volume.config.replication.copies), time.time_ns()
    newest = records[-1] if records else None
    return common | {
        "snapshots": len(records),
        "drill": drill_facts(drill.time_ns, drill.fields) if drill is not None else None,
        "damaged_snapshots": sum(each.state != "good" for each in records),
        "newest": newest and {
            "number": newest.number, "cut_time_ns": newest.cut_time_ns, "age_s": (now_ns - newest.cut_time_ns) / 1e9,
        },
        "replicated": replicated,
        **_replication_settings(settings),
        "targets": [_target_facts(each) for each in targets],
        "objectives": objectives(settings, replicated, is_all_there=_are_current(targets)),
    }  # fmt: skip


def _standings(volume: Volume, records: Sequence[Any]) -> list[dict[str, Any]]:
    from snapfs.store.log import replica_state
    from snapfs.store.log.target_standing import AgentReport, judge

    named = [(target_name(each), plain_url(each.url)) for each in volume.config.replication.target]
    if not named:
        return []
    found, now_ns = replica_state.read_checked(replica_state.path_of(volume.path), volume.volume_id), time.time_ns()
    age_s = (now_ns - found.written_ns) / 1e9 if found is not None else None
    report = AgentReport(found, replica_state.agent_lives(volume.path), age_s)
    return [each.as_json() for each in judge(named, report, records, now_ns)]


def _replicated(targets: Iterable[Mapping[str, Any]], copies: int) -> dict[str, Any] | None:
    """The newest snapshot that so many targets have acknowledged. None: there is none, or it is not known."""
    known = [(each["newest"] or each.get("had") or 0, each) for each in targets]
    there = sorted((pair for pair in known if pair[0]), key=lambda pair: -pair[0])
    if len(there) < copies:
        return None
    number, target = there[copies - 1]
    return {"number": number, "age_s": target.get("newest_age_s"), "copies": copies}


def _are_current(targets: Sequence[Mapping[str, Any]]) -> bool:
    return bool(targets) and all(each["state"] == "current" for each in targets)


def _target_facts(target: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "url", "state", "why", "newest", "missing", "lag_s", "behind_bytes", "newest_age_s")
    return {name: target.get(name) for name in names}


def _replication_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"mode": settings["replication"]["mode"], "bound": settings["replication"]["bound"]}


def _judged(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The daemon's own judgement of the objectives; None if it has none."""
    if facts is None or not (facts.get("rpo_s") or facts.get("rto_s")):
        return None
    met = facts["rpo_state"] != "missed" if facts.get("rpo_s") else None
    return {"rpo_s": facts.get("rpo_s"), "rto_s": facts.get("rto_s"), "age_s": facts.get("age_s"), "met": met}


def objectives(
    settings: Mapping[str, Any], replicated: Mapping[str, Any] | None, *, is_all_there: bool
) -> dict[str, Any] | None:
    """The objectives of the settings and whether they are met; None without any. `is_all_there`: nothing is lacking
    at a target, so that however old the newest snapshot is, nothing would be lost."""
    table = settings.get("objectives") or {}
    spans = {name: float(parse_seconds(table[name])) for name in ("rpo", "rto") if table.get(name, "off") != "off"}
    if not any(spans.values()):
        return None
    age_s = 0.0 if is_all_there else (replicated or {}).get("age_s")
    rpo_s = spans.get("rpo", 0.0)
    met = (age_s is not None and age_s <= rpo_s) if rpo_s else None
    return {"rpo_s": rpo_s or None, "rto_s": spans.get("rto") or None, "age_s": age_s, "met": met}


def space_of(volume_path: str) -> dict[str, int]:
    """What the segments of its history take, and how full its filesystem is, in bytes. Raises nothing."""
    found = dict(_NO_SPACE)
    with contextlib.suppress(OSError):
        disk = os.statvfs(volume_path)
        found |= {"available_bytes": disk.f_bavail * disk.f_frsize, "size_bytes": disk.f_blocks * disk.f_frsize}
        with os.scandir(os.path.join(volume_path, "store", "segments")) as entries:
            found["store_bytes"] = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    return found


def volume_of(path: str) -> KnownVolume:
    """The volume that a person named, as `known_volumes` gives it. UserError if there is none."""
    where = locate(path)
    mountpoint = where.mountpoint or ""
    return KnownVolume(Volume.open(where.volume_path, Disk()).path, mountpoint, bool(mountpoint), "you")


def age(facts: Mapping[str, Any] | None) -> str:
    """How old a snapshot of the facts is, for people."""
    if facts is None:
        return "-"
    return output.seconds(facts["age_s"]) if facts.get("age_s") is not None else f"number {facts['number']}"
