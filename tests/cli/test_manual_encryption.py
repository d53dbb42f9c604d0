"""The manual page on encryption names the commands, options and settings there are, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec

from replicator.commands_key import key
from snapfs.config import EncryptionSettings
from snapfs.store import sealing

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
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--from", "--key-file", "--key-command"}
    assert told <= {word for command in key.commands.values() for option in command.params for word in option.opts}


def test_the_price_that_it_names_is_the_one_there_is() -> None:
    least, most = re.findall(r"adds (\d+) to (\d+) bytes", PAGE)[0]
    assert int(least) == sealing.OVERHEAD
    assert int(most) == sealing.OVERHEAD + 2 * 8
