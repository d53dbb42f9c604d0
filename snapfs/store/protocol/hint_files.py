"""The files that only make a mount faster: hot lists, and what a mount of an encrypted snapshot reads first.

On the wire and in a bucket their content travels alone (wire.py); in a folder it has a head (binary_file.py). Nothing
depends on them: a damaged one counts as none.
"""

from __future__ import annotations

from typing import Final

from snapfs.base.binary_file import BinaryFile
from snapfs.store.protocol import wire

HOT: Final = BinaryFile("hot list", b"snapHOTS", wire.MAX_ENCRYPTED_HOT_BYTES)
"""VOLUME/hot and store/hot/N: `wire.pack_hot`, of an encrypted volume in ciphertext."""

FIRST: Final = BinaryFile("list of what is read first", b"snapFRST", 8 * wire.MAX_FIRST_NUMBERS)
"""store/first/N: object numbers of 8 bytes each."""
