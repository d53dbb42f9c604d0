"""The options with which commands read the history of a target from any host: a mirror, a folder, an object store.

A PLACE with a scheme (https://, file://, s3://...) is a target. One without is a mountpoint or a volume's folder on
this host; of what is encrypted there, the key makes it one that can be read.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from snapfs.base.errors import UserError
from snapfs.commands.support.create_volume import OF_FROM, check_access
from snapfs.commands.support.locate import locate
from snapfs.commands.support.store_options import store_option

if TYPE_CHECKING:
    from snapfs.store.repository.repository import Repository
    from snapfs.transfer.sources.source_access import Access

Given = dict[str, Any]
"""The options of `with_access`, by name."""
_FILES = ("token_file", "ca", "certificate", "certificate_key", "key_file")
_PATH = click.Path(dir_okay=False)
_OPTIONS = (
    click.option("--token-file", type=_PATH, help="Of a URL: holds the mirror's token, or the store's key and secret."),
    store_option,
    click.option("--ca", type=_PATH, help="Of a URL: certificates to trust, not the system's."),
    click.option("--certificate", type=_PATH, help="Of a URL: our own, if the mirror requires one."),
    click.option("--certificate-key", type=_PATH, help="The key of that. Default: in the same file."),
    click.option("--key-file", type=_PATH, help="The key of a volume that is encrypted there."),
    click.option("--key-command", metavar="COMMAND", help="What prints that key."),
)


def with_access(command: Callable[..., Any]) -> Any:
    """Give a command the options, and call it with `given`."""

    @functools.wraps(command)
    def called(*arguments: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in OF_FROM}
        check_access(given)
        return command(*arguments, given=given, **options)

    wrapped: Any = called
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


@contextlib.contextmanager
def opened(place: str, given: Given) -> Iterator[Repository]:
    """The store that `place` means, for reading. click.UsageError, UserError, and what a target raises."""
    far = "://" in place
    named = next((name for name in OF_FROM if given[name] and not name.startswith("key_")), None)
    if named is not None and (not far or place.startswith("file://")):
        option = {"store_options": "store-option"}.get(named, named.replace("_", "-"))
        raise click.UsageError(f"--{option} belongs to a URL, and {place} is on this host.")
    if not far:
        where = locate(place)
        if not where.volume().holds_ciphertext:
            if given["key_file"] or given["key_command"]:
                raise click.UsageError(f"--key-file and --key-command are for what is encrypted: {place} is not.")
            with where.repository() as repository:
                yield repository
            return
        if not (given["key_file"] or given["key_command"]):
            raise UserError(f"{place} is what a target has of an encrypted volume: give its key, with --key-file")
        place = where.volume_path
    from snapfs.transfer.sources.remote_history import distant_repository

    with distant_repository(place, access_of(given)) as repository:
        yield repository


def access_of(given: Given) -> Access:
    """The options as a source takes them."""
    from snapfs.transfer.sources.source_access import Access

    files = {name: given[name] and os.path.abspath(given[name]) for name in _FILES}
    return Access(
        files["token_file"], files["ca"], files["certificate"], files["certificate_key"], files["key_file"],
        given["key_command"], given["store_options"],
    )  # fmt: skip
