"""Every setting with its reason and default, as the text of a new volume.toml."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import cast

import msgspec

from snapfs.base.settings.config import Config, encode, sections, to_builtin
from snapfs.base.settings.replication_settings import TargetSettings


def all_settings() -> Iterator[tuple[str, str, str, object]]:
    """Yield (section, name, reason, default in its text form) of every setting, in the order of the file."""
    defaults = encode(Config())
    for section, type_ in sections():
        for field in cast(msgspec.inspect.StructType, msgspec.inspect.type_info(type_)).fields:
            reason = field.type.extra_json_schema if isinstance(field.type, msgspec.inspect.Metadata) else None
            yield section, field.name, (reason or {}).get("description", ""), defaults[section][field.name]


def template() -> str:
    """The settings part of a new volume.toml: every setting with its reason, at its default, commented out.

    Commented out, so that a volume whose owner chose nothing follows the defaults of later versions.
    """
    lines: list[str] = []
    current = ""
    for section, name, reason, default in all_settings():
        if section != current:
            # The last one is commented out as well, so that a table [replication] can be appended to the file.
            lines += ["", f"#[{section}]" if section == "replication" else f"[{section}]"]
            current = section
        lines += [f"# {line}" for line in textwrap.wrap(reason, width=98)]
        lines.append(f"#{name} = {shown(default)}")
    lines += ["# [[replication.target]]"]
    for name, reason, default in target_settings():
        lines += [f"#   {line}" for line in textwrap.wrap(f"{name} = {shown(default)}: {reason}", 94)]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A setting's value, as `all_settings` gives it, in one line of TOML."""
    import tomlkit  # long to import, and a mount has no use for it

    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return tomlkit.item(value).as_string()


def target_settings() -> Iterator[tuple[str, str, object]]:
    """(name, reason, default in its text form) of the settings in a table [[replication.target]]."""
    for field in cast(msgspec.inspect.StructType, msgspec.inspect.type_info(TargetSettings)).fields:
        reason = field.type.extra_json_schema if isinstance(field.type, msgspec.inspect.Metadata) else None
        default = "" if field.required else {} if field.name == "options" else to_builtin(field.default)
        yield field.name, (reason or {}).get("description", ""), default
