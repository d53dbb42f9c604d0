"""The [volume] table of VOLUME/volume.toml: id, format version, seed, generation.

Invariants:
1. A format version above ours is refused before anything else of the file is looked at.
2. The table has a checksum of its own (files of earlier versions have none): a flipped, lost or torn byte of it is a
   CorruptionError. The settings below it are a person's to edit, and have none.
"""

from __future__ import annotations

import contextlib
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

from snapfs.base.blocks import MAX_GENERATION
from snapfs.base.errors import CorruptionError, UserError, VersionError
from snapfs.base.settings.toml_text import read_toml

FORMAT_VERSION = 1
HEADER = """\
# A snapfs volume. The state is in live/, its history in store/; nothing in here is to be edited by hand
# but the settings below. They take effect at the next mount; `snapfs configcheck` checks them.

[volume]
# Kept by snapfs itself. The seed is a secret of this volume: with it, contents could be made that pass for others.
format = {format}
id = "{id}"
seed = "{seed}"
generation = {generation}
checksum = "{checksum}"
"""
CIPHERTEXT_LINES = (
    "# What is kept here is ciphertext, pushed by a volume that is encrypted for its targets.\nopaque = true\n"
)


class VolumeIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The [volume] table."""

    format: int
    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    seed: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    generation: Annotated[int, Meta(ge=1, le=MAX_GENERATION)]
    holds_ciphertext: bool = msgspec.field(default=False, name="opaque")
    checksum: str = ""

    def sum(self) -> str:
        """What `checksum` has to be."""
        facts = f"{self.format} {self.id} {self.seed} {self.generation} {self.holds_ciphertext}"
        return xxhash.xxh3_64_hexdigest(facts.encode())


def decode_identity(table: object, where: str) -> VolumeIdentity:
    """The checked identity. CorruptionError if it is damaged, VersionError if a later snapfs wrote it."""
    if not isinstance(table, dict) or type(table.get("format")) is not int:
        raise _lost_identity(where, "the [volume] table with its format is missing")
    if table["format"] > FORMAT_VERSION:
        raise VersionError(
            f"{where} has format {table['format']}, this snapfs knows up to {FORMAT_VERSION}: use a later snapfs"
        )
    try:
        found = msgspec.convert(table, VolumeIdentity)
    except msgspec.ValidationError as error:
        raise _lost_identity(where, f"[volume] is kept by snapfs and was changed: {error}") from None
    if "checksum" in table and found.checksum != found.sum():
        raise _lost_identity(where, "[volume] is kept by snapfs and was changed: wrong checksum")
    return found


def _lost_identity(where: str, why: str) -> CorruptionError:
    return CorruptionError("the volume's identity", where, f"{why}; restore the file from a copy")


def identity_table(text: str) -> object:
    """The [volume] table of a file that is no TOML as a whole; None if that cannot be read either."""
    _, _, rest = text.partition("\n[volume]\n")
    lines = rest.split("\n")
    end = next((at for at, line in enumerate(lines) if line.startswith("[")), len(lines))
    with contextlib.suppress(UserError):
        return read_toml("\n".join(lines[:end]), "[volume]") or None
    return None
