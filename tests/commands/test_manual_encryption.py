"""The manual page on encryption names the commands, options and settings there are, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec

from replicator.commands.key_commands import key
from snapfs.base.settings.replication_settings import EncryptionSettings
from snapfs.store.crypto import encryption

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "snapfs-encryption.7.md").read_text()


def test_every_command_option_and_setting_is_there() -> None:
    for name, command in key.commands.items():
        assert f"### key {name}\n" in PAGE
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[0] in PAGE, (name, option.opts)
    for field in msgspec.structs.fields(EncryptionSettings):
        assert field.name in PAGE
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--from", "--key-file", "--key-command"}
    assert named <= {word for command in key.commands.values() for option in command.params for word in option.opts}


def test_the_price_that_it_names_is_the_one_there_is() -> None:
    least, most = re.findall(r"adds (\d+) to (\d+) bytes", PAGE)[0]
    assert int(least) == encryption.OVERHEAD
    assert int(most) == encryption.OVERHEAD + 2 * 8
