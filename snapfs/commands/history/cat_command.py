"""The command `cat`: the bytes of a file as a snapshot has it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import Final

import click

from snapfs.base.blocks import CHUNK_SIZE
from snapfs.base.errors import UserError
from snapfs.commands.support.completion import folders
from snapfs.commands.support.history_paths import kept, located, place_first
from snapfs.commands.support.output import printable
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.history.tree_lookup import Located
from snapfs.store.repository.repository import Repository

_CHUNKS_A_PART: Final = 64


@click.command("cat", short_help="Print a file of a snapshot.")
@click.argument("words", metavar="[PLACE] SNAPSHOT:PATH...", nargs=-1, shell_complete=folders)
@with_access
def cat(words: tuple[str, ...], given: Given) -> None:
    """Print the file PATH, from the top of the tree, as SNAPSHOT has it. Of several one after the other.

    PLACE may be a target's URL, and is the mount that you are in if it is left out (with one SNAPSHOT:PATH). Each byte
    is checked before it is printed; what is damaged ends it with exit code 5.
    """
    if not words:
        raise click.UsageError("Missing argument 'SNAPSHOT:PATH...'.")
    place, references = place_first(words, 1)
    stdout = sys.stdout.buffer
    with opened(place, given) as repository:
        files = [located(repository, reference) for reference in references]
        for file in files:
            _check(file)
        for file in files:
            with kept(repository, file.snapshot, "cat"):
                for piece in contents(repository, file):
                    stdout.write(piece)
        stdout.flush()


def _check(file: Located) -> None:
    kind = stat.S_IFMT(file.record.mode)
    if kind == stat.S_IFREG:
        return
    shown = printable(file.path) or "."
    if kind == stat.S_IFLNK:
        raise UserError(f"{shown} is a symbolic link, to {printable(os.fsdecode(file.record.target))}: cat that")
    raise UserError(
        f"{shown} is {'a directory' if kind == stat.S_IFDIR else 'no regular file'}: `snapfs restore` writes it out"
    )


def contents(repository: Repository, file: Located) -> Iterator[bytes]:
    """The bytes of a regular file, in parts of 4 MiB at most. Raises CorruptionError, OSError."""
    size = file.record.size
    step = _CHUNKS_A_PART * CHUNK_SIZE
    for start in range(0, size, step):
        first = start // CHUNK_SIZE
        pointers = [pointer for _, pointer in file.tree.chunks(file.record, first, first + _CHUNKS_A_PART)]
        repository.lazy_history.fetch_missing(pointers)
        yield file.tree.read(file.record, start, step)


COMMANDS = (cat,)
