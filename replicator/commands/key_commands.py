"""The commands for the keys of an encrypted volume: key create, show, rotate, rewrap."""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from replicator.commands.command_options import json_option, print_json
from replicator.source.volume_keys import owners_key
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.file_lock import locked_folder
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import KEYS_FILE
from snapfs.store.crypto.keys import Keyring, OwnersKey, WrappedKeys, read_keys, read_owners_key, write_keys

volume_argument = click.argument("volume", type=click.Path(file_okay=False))


@click.group("key", short_help="Keys of encrypted volumes: make, show, rotate.")
def key() -> None:
    """Keys of a volume whose targets get ciphertext ([replication.encryption] in its volume.toml).

    The owner's key, which the settings name, wraps the volume's data keys in VOLUME/keys.json. A running agent takes up
    a change at once, and brings it to the targets.
    """


@key.command("create", short_help="Make a volume's keys.")
@volume_argument
def create(volume: str) -> None:
    """Make the keys of VOLUME, which else happens with its first push."""
    opened, owner = _opened(volume)
    with locked_folder(opened.path):
        if read_keys(opened.path) is not None:
            raise UserError(f"{opened.path}/{KEYS_FILE} is there already: `key rotate` adds a new data key to it")
        wrapped = owner.wrap(Keyring.create(opened.volume_id, opened.seed))
        write_keys(opened.path, wrapped, Disk())
    click.echo(f"the keys of {opened.path} are wrapped by key {wrapped.key}: keep a copy of it elsewhere")


@key.command("show", short_help="Show what keys there are.")
@click.argument("folder", type=click.Path(file_okay=False))
@json_option
def show(folder: str, as_json: bool) -> None:
    """Show the keys in FOLDER, a volume's or what a target has of one; none of them is printed.

    Of a volume whose owner's key can be read the data keys are counted, and the one that seals is named.
    """
    opened = Volume.open(folder, Disk())
    wrapped = _wrapped(opened)
    facts: dict[str, Any] = {"volume": wrapped.volume, "ring": wrapped.ring, "serial": wrapped.serial}
    facts["wrapped_by"] = wrapped.key
    if opened.config.replication.encryption.is_on:
        keyring = owners_key(opened.config.replication.encryption).unwrap(wrapped, _place(opened))
        facts |= {"data_keys": sorted(keyring.keys), "current": keyring.current}
    if as_json:
        return print_json(facts)
    for name, value in facts.items():
        click.echo(f"{name:<11} {', '.join(value) if isinstance(value, list) else value}")
    return None


@key.command("rotate", short_help="Seal with a new data key from now on.")
@volume_argument
def rotate(volume: str) -> None:
    """Add a data key to those of VOLUME, which seals all that is pushed from now on.

    What targets have stays readable, and sealed as it is: to have all of it sealed anew, push to a target of another
    name.
    """
    opened, owner = _opened(volume)
    with locked_folder(opened.path):
        rotated = owner.unwrap(_wrapped(opened), _place(opened)).rotated()
        write_keys(opened.path, owner.wrap(rotated), Disk())
    click.echo(f"data key {rotated.current} seals from now on; {len(rotated.keys) - 1} older ones still open")


@key.command("rewrap", short_help="Change the owner's key.")
@volume_argument
@click.option("--new-key-file", type=click.Path(dir_okay=False), help="The new key: a file that others cannot read.")
@click.option("--new-key-command", metavar="COMMAND", help="What prints the new key.")
def rewrap(volume: str, new_key_file: str | None, new_key_command: str | None) -> None:
    """Wrap the data keys of VOLUME by a new owner's key. The settings still name the old one, and then the new.

    Nothing has to be sealed anew. But who has the old key, and keys.json as it was, has the data keys: if the old key
    fell into wrong hands, `key rotate` as well, and push to a target of another name.
    """
    opened, owner = _opened(volume)
    new = read_owners_key(new_key_file, new_key_command)
    with locked_folder(opened.path):
        keyring = owner.unwrap(_wrapped(opened), _place(opened))
        wrapped = new.wrap(msgspec.structs.replace(keyring, serial=keyring.serial + 1))
        write_keys(opened.path, wrapped, Disk())
    click.echo(f"key {wrapped.key} opens the keys of {opened.path} from now on")
    given = f'key_file = "{os.path.abspath(new_key_file)}"' if new_key_file else f'key_command = "{new_key_command}"'
    click.echo(f"Next, under [replication.encryption] in {opened.toml_path}: {given}")


COMMANDS = (key,)


def _opened(path: str) -> tuple[Volume, OwnersKey]:
    opened = Volume.open(path, Disk())
    settings = opened.config.replication.encryption
    if opened.holds_ciphertext or not settings.is_on:
        raise UserError(f"{opened.toml_path} names no key: add a table [replication.encryption] with key_file")
    return opened, owners_key(settings)


def _place(volume: Volume) -> str:
    return os.path.join(volume.path, KEYS_FILE)


def _wrapped(volume: Volume) -> WrappedKeys:
    found = read_keys(volume.path)
    if found is None:
        raise UserError(f"{volume.path} has no keys yet: `snapfs-replicator key create` makes them")
    return found
