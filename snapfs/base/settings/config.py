"""All settings of a volume as one value, and the checks that text has to pass to become one.

Invariants:
1. A setting has one home: its field in volume_settings or replication_settings. The text of a new volume.toml
   (settings_template) comes from the field's own default and reason, so code, file and manual cannot disagree.
2. An unknown setting is refused by name: a typing error never becomes a silent default.
3. A value from the command line (``-o snapshots.every=5s``) passes the same checks as one from the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from snapfs.base.errors import UserError
from snapfs.base.settings import calendar_times, exclusion
from snapfs.base.settings.audit_settings import AuditSettings
from snapfs.base.settings.control_settings import ControlSettings
from snapfs.base.settings.proof_settings import DrillSettings, VerifySettings
from snapfs.base.settings.replication_settings import ReplicationSettings, target_name
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.settings.units import Bytes, Seconds, from_text, to_text
from snapfs.base.settings.volume_settings import (
    HookSettings,
    HydrationSettings,
    LiveSettings,
    MountSettings,
    ObjectiveSettings,
    SealSettings,
    SnapshotSettings,
)

_SMALLEST = {
    ("seal", "window"): Bytes(1 << 20),
    ("live", "wal_sync_interval"): Seconds(0.01),
    ("hooks", "timeout"): Seconds(0.1),
    ("drill", "timeout"): Seconds(1),
    ("replication", "bound"): Seconds(1),
}
_SMALLEST_UNLESS_OFF = {
    ("objectives", "rpo"): Seconds(1),
    ("snapshots", "dirty"): Bytes(1 << 20),
    ("live", "limit"): Bytes(1 << 20),
    ("snapshots", "lull"): Seconds(0.1),
    ("drill", "every"): Seconds(60),
}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a volume."""

    snapshots: SnapshotSettings = SnapshotSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    retention: RetentionSettings = RetentionSettings()
    seal: SealSettings = SealSettings()
    live: LiveSettings = LiveSettings()
    mount: MountSettings = MountSettings()
    hydration: HydrationSettings = HydrationSettings()
    hooks: HookSettings = HookSettings()
    control: ControlSettings = ControlSettings()
    audit: AuditSettings = AuditSettings()
    verify: VerifySettings = VerifySettings()
    drill: DrillSettings = DrillSettings()
    replication: ReplicationSettings = ReplicationSettings()


def decode(tables: Mapping[str, Any], where: str) -> Config:
    """Check the tables of a TOML document. `where` names the file in the one line of a `UserError`."""
    try:
        config = msgspec.convert(dict(tables), Config, dec_hook=from_text)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `")
        place = place.rstrip("`").removeprefix("$").lstrip(".")
        raise UserError(f"{where}: {_plain(text)}{_choices(text, place)}{f', at {place}' if place else ''}") from None
    _check_targets(config.replication, where)
    _check_rules(config.snapshots, where)
    _check_hooks(config.hooks, where)
    _check_proof(config, where)
    if config.snapshots.keep and config.retention.is_on:
        why = "snapshots.keep and [retention] both say what to keep: write keep = N as last = N"
        raise UserError(f"{where}: {why}, at retention")
    for (section, name), least in (_SMALLEST | _SMALLEST_UNLESS_OFF).items():
        value = getattr(getattr(config, section), name)
        if value < least and (value or (section, name) in _SMALLEST):
            raise UserError(f"{where}: too small: at least {to_text(least)}, at {section}.{name}")
    return config


def _check_rules(settings: SnapshotSettings, where: str) -> None:
    for expression in settings.calendar:
        calendar_times.check(expression, f"{where}: ", ", at snapshots.calendar")
    if settings.at_most and settings.at_least > settings.at_most:
        raise UserError(f"{where}: at_least is more than at_most, at snapshots.at_least")
    if len(settings.exclude) > exclusion.MOST_PATTERNS:
        raise UserError(f"{where}: at most {exclusion.MOST_PATTERNS} patterns, at snapshots.exclude")
    try:
        exclusion.compiled(settings.exclude)
    except UserError as error:
        raise UserError(f"{where}: {error}, at snapshots.exclude") from None


def _check_hooks(settings: HookSettings, where: str) -> None:
    for name, words in (("before", settings.before), ("after", settings.after)):
        if any("\0" in word for word in words):  # no process can be given one: ValueError, not OSError
            raise UserError(f"{where}: a command cannot have a NUL, at hooks.{name}")


def _check_proof(config: Config, where: str) -> None:
    drill, names = config.drill, [target_name(target) for target in config.replication.target]
    for expression in drill.at:
        calendar_times.check(expression, f"{where}: ", ", at drill.at")
    if (drill.every or drill.at) and not drill.check:
        raise UserError(f"{where}: a drill needs a check (postgres, sqlite, ... or a command), at drill.check")
    if drill.target and drill.target not in names:
        raise UserError(
            f"{where}: there is no target {drill.target}: there are {', '.join(names) or 'none'}, at drill.target"
        )
    if config.verify.share_a_day > 1:
        raise UserError(f"{where}: more than 100% a day, at verify.share")


def _check_targets(settings: ReplicationSettings, where: str) -> None:
    names = [target_name(target) for target in settings.target]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: two targets are called {twice}: give them a `name` each, at replication.target")
    if settings.target and settings.copies > len(settings.target):
        raise UserError(f"{where}: {settings.copies} copies on {len(settings.target)} targets, at replication.copies")
    if settings.encryption.key_file and settings.encryption.key_command:
        raise UserError(f"{where}: name a key_file or a key_command, and not both, at replication.encryption")
    if settings.mode != "async" and not settings.target:
        raise UserError(f"{where}: mode {settings.mode} needs a [[replication.target]], at replication.mode")


def _choices(text: str, place: str) -> str:
    """What may stand at a setting that knows a few words only, for who wrote another one."""
    if not text.startswith("Invalid enum value"):
        return ""
    kind: Any = Config
    for name in re.findall(r"[a-z_]+", place):
        kind = get_type_hints(kind).get(name, kind)
    words = list(_words_of(kind))
    return f": write {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else ""


def _words_of(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from (str(word) for word in get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    else:
        for inner in get_args(kind):
            yield from _words_of(inner)


def _plain(text: str) -> str:
    if "matching regex" in text and "https?|file" in text:
        return "a target's url begins with https://, http://, file:///, s3://, gs:// or az://"
    if "matching regex" in text and "off|" in text:
        return 'write a share as in "10%", or "off"'
    if "matching regex" in text and "a-z0-9_-" in text:
        return "a name has at most 40 of a-z, 0-9, - and _"
    return text.replace("Object contains unknown field", "unknown setting").replace("Expected", "expected")


def encode(config: Config) -> dict[str, dict[str, object]]:
    """`config` as plain tables with its units as text, the form `decode` reads."""
    return {
        section: {name: to_builtin(getattr(getattr(config, section), name)) for name in type_.__struct_fields__}
        for section, type_ in sections()
    }


def to_builtin(value: object) -> object:
    if isinstance(value, tuple):
        return [to_builtin(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return _given(value)
    return to_text(value) if isinstance(value, Seconds | Bytes) else value


def _given(table: msgspec.Struct) -> dict[str, object]:
    """What is not at its default in a table of an array."""
    named = ((field.name, field.default, getattr(table, field.name)) for field in msgspec.structs.fields(table))
    return {name: to_builtin(value) for name, default, value in named if value and value != default}


def override(config: Config, settings: Mapping[str, str]) -> Config:
    """`config` with single settings replaced, each named ``section.name`` and given as text. UserError if bad."""
    tables = encode(config)
    for key, text in settings.items():
        section, _, name = key.partition(".")
        if name not in tables.get(section, {}):
            raise UserError(f"unknown setting {key}: see `snapfs configcheck --defaults`")
        tables[section][name] = _scalar(text) if not isinstance(tables[section][name], list) else [text]
    return decode(tables, "command line")


def _scalar(text: str) -> object:
    if text in {"true", "false"}:
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+\.\d+", text) else text


def sections() -> list[tuple[str, type[msgspec.Struct]]]:
    return [(name, type(getattr(Config(), name))) for name in Config.__struct_fields__]
