"""TOML as text: parsed with or without its comments, with the place of a mistake."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from snapfs.base.errors import UserError

if TYPE_CHECKING:
    import tomlkit


def parse_toml(text: str, where: str) -> tomlkit.TOMLDocument:
    """`text` as a document that remembers its comments; UserError names the line and column of a mistake."""
    import tomlkit  # long to import, and a mount reads its settings without it
    from tomlkit.exceptions import ParseError

    try:
        return tomlkit.parse(text)
    except ParseError as error:
        twice = re.search(r'Key "(\w+)" already exists', str(error))
        more = f": the table [{twice[1]}] is there twice, put its settings under the first" if twice else ""
        raise UserError(f"{where}: {error}{more}") from None


def read_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of `text`; UserError as of `parse_toml`, which takes thirty times as long: to keep comments costs."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return parse_toml(text, where).unwrap()
