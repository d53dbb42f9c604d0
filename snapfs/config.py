"""The settings of a volume: what volume.toml may say, what each default is and why.

This file owns the names, types, units and bounds of all settings, and nothing that acts on them.

Invariants:
1. A setting has one home: its field below. The text that `template` writes into a new volume.toml comes from the
   field's own default and reason, so that code, file and manual cannot disagree.
2. Whatever is not known is refused, with the name of the setting: a typing error never becomes a silent default.
3. A value that comes from the command line (``-o snapshots.every=5s``) passes the same checks as one from the file.
4. All structs are frozen. A changed setting takes effect at the next mount.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
import tomlkit
from msgspec import Meta
from tomlkit.exceptions import ParseError

from snapfs.errors import UserError


class Seconds(float):
    """A time span. In text: ``500ms``, ``10s``, ``5m``, ``1h30m``, ``2d``; ``off`` is 0, which is false."""


class Bytes(int):
    """A size. In text: ``4096B``, ``64KiB``, ``1.5GiB`` (1024), ``1MB`` (1000)."""


_SMALLEST = {
    ("seal", "window"): Bytes(1 << 20),
    ("live", "wal_sync_interval"): Seconds(0.01),
    ("replication", "bound"): Seconds(1),
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", 1)
}


class SnapshotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a snapshot is made without being asked for."""

    every: Annotated[
        Seconds, Meta(description="Time from one snapshot to the next. Off, because history takes space: you choose.")
    ] = Seconds(0)
    flush: Annotated[
        bool,
        Meta(
            description="Write the kernel's dirty pages out before the cut, so that a snapshot has every write that "
            "returned before it, and not only those that were fsynced. Off spares the burst of writing."
        ),
    ] = True
    skip_unchanged: Annotated[
        bool, Meta(description="Make none when nothing changed: a history of equal snapshots helps nobody.")
    ] = True
    on_unmount: Annotated[
        bool,
        Meta(
            description="Make one at each clean unmount. Off: the live tree is durable, and an unmount should be quick."
        ),
    ] = False
    keep: Annotated[
        int,
        Meta(
            ge=0,
            description="How many of the snapshots made by `every` to keep; the oldest is dropped. 0 keeps all. Those "
            "with a name are always kept: only you know what they are for.",
        ),
    ] = 0


class SealSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a cut is turned into a snapshot in the background."""

    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="Threads that compress. 0: a quarter of the cores, from 1 to 4, as the application goes first. "
            "On four cores that were busy with other work one sealed 350 MB/s (median of four runs), and two to four "
            "no more (280 to 300), while the median request took 0.15 ms with one and 0.3 ms with three or four.",
        ),
    ] = 0
    window: Annotated[
        Bytes,
        Meta(description="Most bytes on their way from the live tree to the store: the bound of the sealer's memory."),
    ] = Bytes(32 << 20)
    cache: Annotated[
        Bytes,
        Meta(
            description="Recent objects kept uncompressed. A base at hand makes a patch three times cheaper than one "
            "that must be read back first."
        ),
    ] = Bytes(64 << 20)


class LiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live tree."""

    max_open_files: Annotated[
        int,
        Meta(
            ge=16,
            description="Backing files held open at a time. 512 leaves half of the common limit of 1,024 descriptors "
            "to the rest.",
        ),
    ] = 512
    max_dirty_files: Annotated[
        int,
        Meta(ge=1, description="With more changed files than this a snapshot is made, so that memory stays bounded."),
    ] = 200_000
    data_path: Annotated[
        Literal["auto", "native", "python"],
        Meta(
            description="Who serves the bytes of files: C threads (native) or the daemon's Python, which is slower and "
            "the same otherwise. auto: native where the extensions were built; native: not without them."
        ),
    ] = "auto"
    wal_sync_interval: Annotated[
        Seconds,
        Meta(description="Longest time until a change of names or attributes that nobody fsynced is on the disk."),
    ] = Seconds(1)


class MountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the volume is shown."""

    allow_other: Annotated[
        bool | Literal["auto"],
        Meta(
            description="Let other users than the one who mounts in (as their permissions allow). auto: yes for root, "
            "so that a service's user can use the mount; others need user_allow_other in /etc/fuse.conf for it."
        ),
    ] = "auto"


class TargetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place that snapshots are replicated to: a table `[[replication.target]]`."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(https?|file|s3|gs|az)://.+",
            description="https://MIRROR:8700/NAME (a mirror), file:///FOLDER (a folder, on another disk), or "
            "s3://BUCKET/PREFIX, gs://..., az://... (an object store).",
        ),
    ]
    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_-]{0,40}$",
            description="What it is called in status and metrics. Empty: its host, folder or bucket.",
        ),
    ] = ""
    token_file: Annotated[
        str,
        Meta(
            description="A file with the mirror's token, or with the key id and secret of an object store on two lines "
            "(else from the environment). A file, so that no secret stands among settings."
        ),
    ] = ""
    ca: Annotated[
        str, Meta(description="Certificates to trust, a PEM file. Empty: those that the system trusts.")
    ] = ""
    certificate: Annotated[
        str, Meta(description="Our own certificate, a PEM file, where the mirror asks for one; with `key`.")
    ] = ""
    key: Annotated[str, Meta(description="The key of `certificate`, a PEM file. Empty: it is in that file.")] = ""
    limit: Annotated[
        Bytes, Meta(description="Most bytes a second to this target. 0B: as fast as the link likes.")
    ] = Bytes(0)
    options: Annotated[
        dict[str, str],
        Meta(description="Options of an object store, as obstore calls them: endpoint, region, allow_http..."),
    ] = {}


class EncryptionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The owner's key of what targets get: a table `[replication.encryption]`."""

    key_file: Annotated[
        str, Meta(description="A file with the key: 32 bytes, 64 hex digits or a passphrase, that others cannot read.")
    ] = ""
    key_command: Annotated[
        str, Meta(description="A command that prints the key, such as `pass show snapfs/pg`. No shell runs it.")
    ] = ""

    @property
    def is_on(self) -> bool:
        return bool(self.key_file or self.key_command)


class ReplicationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the history goes besides this disk. `snapfs-replicator agent` does it."""

    mode: Annotated[
        Literal["async", "bounded", "sync"],
        Meta(
            description="What the application may lose if this host is gone. async: the snapshots still on their way. "
            "bounded: at most `bound` of its work, for which it is slowed down, and in the end held, when "
            "replication falls behind. sync: a snapshot made by command is only answered when it is replicated. "
            "async, because a link that is down must not stop an application whose owner did not choose so."
        ),
    ] = "async"
    bound: Annotated[
        Seconds,
        Meta(description="Of mode bounded: the oldest work that may be on this host alone. Some retries fit into it."),
    ] = Seconds(30)
    copies: Annotated[
        int, Meta(ge=1, description="So many targets must have a snapshot for it to count as replicated.")
    ] = 1
    wait: Annotated[
        Seconds,
        Meta(
            description="How long a snapshot with wait=replicated waits for its targets before it says ETIMEDOUT. The "
            "snapshot is then made, and still on its way."
        ),
    ] = Seconds(60)
    claim: Annotated[
        Literal["try", "require"],
        Meta(
            description="Whether a mount waits for its mirrors to say that this host is still the writer. require: so "
            "many as `copies` must, or there is no mount. try: those that answer are believed, and silence stops "
            "nothing. try, because a mirror refuses who is not its writer in any case, and a database must be able to "
            "start while a link is down."
        ),
    ] = "try"
    fenced: Annotated[
        Literal["read-only", "local"],
        Meta(
            description="What a mount does when another host has become the writer. read-only: nothing changes any "
            "more (EROFS). local: it goes on for this host alone. read-only, because what an application acknowledges "
            "on a host that was replaced is lost to those it was promised to."
        ),
    ] = "read-only"
    history: Annotated[
        bool,
        Meta(
            description="Send, after an outage, also the snapshots between; the newest always goes first. Off: a "
            "target has a gap where the link was down."
        ),
    ] = True
    drops: Annotated[
        Literal["follow", "keep"],
        Meta(
            description="What a target does when a snapshot is dropped here. follow: drop it there too, so that it "
            "does not grow for ever. keep: leave that to whoever runs it."
        ),
    ] = "follow"
    hold: Annotated[
        Seconds,
        Meta(
            description="How long a target that cannot be reached keeps its newest snapshot from being dropped here: "
            "the next difference to it is made against that. After that everything is sent anew."
        ),
    ] = Seconds(7 * 86400)
    encryption: Annotated[
        EncryptionSettings,
        Meta(
            description='Encrypt what targets get, with a key that they never see: {key_file = "/etc/snapfs/pg.key"} '
            'or {key_command = "pass show snapfs/pg"}, or a table [replication.encryption]. Off, because a lost key is '
            "a lost history. What is on this disk is not encrypted by it."
        ),
    ] = EncryptionSettings()
    target: Annotated[
        tuple[TargetSettings, ...],
        Meta(description="Where to: a table [[replication.target]] for each target. None: nothing is replicated."),
    ] = ()


class HydrationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a volume that was mounted from elsewhere brings in what it does not have yet."""

    background: Annotated[
        bool,
        Meta(
            description="Bring everything in behind the application's back, so that the source is needed no more. Off: "
            "only what is asked for; `resume` on the control file begins it."
        ),
    ] = True
    rate: Annotated[
        Bytes,
        Meta(
            description="Most bytes a second that are brought in unasked. 0B: as many as there is room for beside the "
            "application, which goes first in any case."
        ),
    ] = Bytes(0)
    wait: Annotated[
        Seconds,
        Meta(
            description="How long a read waits for bytes that no source can deliver, before it fails with EIO. 30s "
            "outlasts a restart of a mirror; an application that hangs for longer is worse off than one that fails."
        ),
    ] = Seconds(30)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a volume."""

    snapshots: SnapshotSettings = SnapshotSettings()
    seal: SealSettings = SealSettings()
    live: LiveSettings = LiveSettings()
    mount: MountSettings = MountSettings()
    hydration: HydrationSettings = HydrationSettings()
    replication: ReplicationSettings = ReplicationSettings()


def parse_seconds(text: str) -> Seconds:
    """The seconds that `text` names; ValueError says what is wrong with it."""
    if text == "off":
        return Seconds(0)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|[smhd])\s*", text)
    if not parts or "".join(map("".join, parts)) != re.sub(r"\s", "", text):
        raise ValueError(f"`{text}` is not a time: write 500ms, 10s, 5m, 1h30m, 2d or off")
    return Seconds(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_bytes(text: str) -> Bytes:
    """The bytes that `text` names; ValueError says what is wrong with it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", text)
    if match is None or match[2] not in _BYTES:
        raise ValueError(f"`{text}` is not a size: write 4096B, 64KiB, 32MiB or 1.5GiB")
    return Bytes(float(match[1]) * _BYTES[match[2]])


def format_seconds(span: float) -> str:
    """The shortest text that `parse_seconds` reads back as `span` (to the millisecond)."""
    if not span:
        return "off"
    for unit, size in reversed(_SECONDS.items()):
        if span >= size and round(span * 1000) % round(size * 1000) == 0:
            return f"{round(span * 1000) // round(size * 1000)}{unit}"
    return f"{span:g}s"


def format_bytes(size: int) -> str:
    """The shortest exact text that `parse_bytes` reads back as `size`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def _from_text(kind: type, value: object) -> object:
    if kind is Seconds or kind is Bytes:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit: write it as in {'10s' if kind is Seconds else '64MiB'!r}")
        return parse_seconds(value) if kind is Seconds else parse_bytes(value)
    raise NotImplementedError(kind)


def _to_text(value: object) -> object:
    return format_seconds(value) if isinstance(value, Seconds) else format_bytes(cast(Bytes, value))


def decode(tables: Mapping[str, Any], where: str) -> Config:
    """Check the tables of a TOML document. `where` names the file in the one line of a `UserError`."""
    try:
        config = msgspec.convert(dict(tables), Config, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `")
        place = place.rstrip("`").removeprefix("$").lstrip(".")
        raise UserError(f"{where}: {_plain(text)}{f', at {place}' if place else ''}") from None
    _check_targets(config.replication, where)
    for (section, name), least in _SMALLEST.items():
        if getattr(getattr(config, section), name) < least:
            raise UserError(f"{where}: too small: at least {_to_text(least)}, at {section}.{name}")
    return config


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


def target_name(target: TargetSettings) -> str:
    """What a target is called: its own name, else what tells its URL from others."""
    scheme, _, rest = target.url.partition("://")
    place = rest if scheme == "file" else rest.partition("/")[0]
    return target.name or re.sub(r"[^a-z0-9_-]+", "-", place.lower()).strip("-")[-40:] or scheme


def _plain(text: str) -> str:
    return text.replace("Object contains unknown field", "unknown setting").replace("Expected", "expected")


def parse_toml(text: str, where: str) -> tomlkit.TOMLDocument:
    """`text` as a document that remembers its comments; UserError names the line and column of a mistake."""
    try:
        return tomlkit.parse(text)
    except ParseError as error:
        raise UserError(f"{where}: {error}") from None


def read_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of `text`; UserError as of `parse_toml`, which takes thirty times as long: to keep comments costs."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return parse_toml(text, where).unwrap()


def encode(config: Config) -> dict[str, dict[str, object]]:
    """`config` as plain tables with its units as text, the form `decode` reads."""
    return {
        section: {name: _to_builtin(getattr(getattr(config, section), name)) for name in type_.__struct_fields__}
        for section, type_ in _sections()
    }


def _to_builtin(value: object) -> object:
    if isinstance(value, tuple):
        return [_given(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return _given(value)
    return _to_text(value) if isinstance(value, Seconds | Bytes) else value


def _given(table: msgspec.Struct) -> dict[str, object]:
    """What is not at its default in a table of an array."""
    named = ((field.name, field.default, getattr(table, field.name)) for field in msgspec.structs.fields(table))
    return {name: _to_builtin(value) for name, default, value in named if value and value != default}


def override(config: Config, settings: Mapping[str, str]) -> Config:
    """`config` with single settings replaced, each named ``section.name`` and given as text. UserError if bad."""
    tables = encode(config)
    for key, text in settings.items():
        section, _, name = key.partition(".")
        if name not in tables.get(section, {}):
            raise UserError(f"unknown setting {key}: see `snapfs configcheck --defaults`")
        tables[section][name] = _scalar(text)
    return decode(tables, "command line")


def _scalar(text: str) -> object:
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def settings() -> Iterator[tuple[str, str, str, object]]:
    """Yield (section, name, reason, default in its text form) of every setting, in the order of the file."""
    defaults = encode(Config())
    for section, type_ in _sections():
        for field in cast(msgspec.inspect.StructType, msgspec.inspect.type_info(type_)).fields:
            reason = field.type.extra_json_schema if isinstance(field.type, msgspec.inspect.Metadata) else None
            yield section, field.name, (reason or {}).get("description", ""), defaults[section][field.name]


def _sections() -> list[tuple[str, type[msgspec.Struct]]]:
    return [(name, type(getattr(Config(), name))) for name in Config.__struct_fields__]


def template() -> str:
    """The settings part of a new volume.toml: every setting with its reason, at its default, commented out.

    Commented out, so that a volume whose owner chose nothing follows the defaults of later versions.
    """
    lines: list[str] = []
    current = ""
    for section, name, reason, default in settings():
        if section != current:
            lines += ["", f"[{section}]"]
            current = section
        lines += [f"# {line}" for line in textwrap.wrap(reason, width=98)]
        lines.append(f"#{name} = {shown(default)}")
    lines += ["# [[replication.target]]"]
    for name, reason, default in target_settings():
        lines += [f"#   {line}" for line in textwrap.wrap(f"{name} = {shown(default)}: {reason}", 94)]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A setting's value, as `settings` gives it, in one line of TOML."""
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return tomlkit.item(value).as_string()


def target_settings() -> Iterator[tuple[str, str, object]]:
    """(name, reason, default in its text form) of what a table [[replication.target]] may say."""
    for field in cast(msgspec.inspect.StructType, msgspec.inspect.type_info(TargetSettings)).fields:
        reason = field.type.extra_json_schema if isinstance(field.type, msgspec.inspect.Metadata) else None
        default = "" if field.required else {} if field.name == "options" else _to_builtin(field.default)
        yield field.name, (reason or {}).get("description", ""), default
