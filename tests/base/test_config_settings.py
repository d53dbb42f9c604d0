"""The settings: what text means, what is refused and in which words, and the file of a new volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.errors import UserError
from snapfs.base.settings import config, replication_settings, settings_template, toml_text, units
from snapfs.base.settings.config import Config
from snapfs.base.settings.units import Bytes, Seconds
from snapfs.commands.support.check_config import problems


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("off", 0), ("500ms", 0.5), ("10s", 10), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("1.5 h", 5400)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert units.parse_seconds(text) == Seconds(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "-5s", "5s junk", "1h,2m", "on"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        units.parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("4096B", 4096), ("64KiB", 65536), ("1.5GiB", 3 << 29), ("1MB", 10**6), ("2 TiB", 2 << 40)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert units.parse_bytes(text) == Bytes(size)


@pytest.mark.parametrize("text", ["", "5", "64k", "64M", "-1B", "1XiB", "iB", "1iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_bytes(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_a_written_time_is_read_back(milliseconds: int) -> None:
    text = units.format_seconds(Seconds(milliseconds / 1000))
    assert units.parse_seconds(text) == pytest.approx(milliseconds / 1000)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_written_size_is_read_back(size: int) -> None:
    assert units.parse_bytes(units.format_bytes(size)) == size


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[snapshots]\nevry = '5s'", "v: unknown setting `evry`, at snapshots"),
        ("[snapshot]\nevery = '5s'", "v: unknown setting `snapshot`"),
        ("[snapshots]\nevery = 5", "v: 5 has no unit: write it as in '10s', at snapshots.every"),
        (
            "[snapshots]\nevery = '5'",
            "v: `5` is not a time: write 500ms, 10s, 5m, 1h30m, 2d or off, at snapshots.every",
        ),
        ("[snapshots]\nflush = 'yes'", "v: expected `bool`, got `str`, at snapshots.flush"),
        ("[seal]\nwindow = '5M'", "v: `5M` is not a size: write 4096B, 64KiB, 32MiB or 1.5GiB, at seal.window"),
        ("[seal]\nwindow = '1KiB'", "v: too small: at least 1MiB, at seal.window"),
        ('[hooks]\nbefore = ["sh", "a\\u0000b"]', "v: a command cannot have a NUL, at hooks.before"),
        ('[hooks]\nafter = ["\\u0000"]', "v: a command cannot have a NUL, at hooks.after"),
        ("[seal]\nthreads = 65", "v: expected `int` <= 64, at seal.threads"),
        ("[live]\nmax_open_files = 1", "v: expected `int` >= 16, at live.max_open_files"),
        ("[live]\nwal_sync_interval = 'off'", "v: too small: at least 10ms, at live.wal_sync_interval"),
        ("[mount]\nallow_other = 'maybe'", "v: Invalid enum value 'maybe': write true, false or auto, at mount.allow"),
        ("[replication]\nmode = 'sync'", "v: mode sync needs a [[replication.target]], at replication.mode"),
        ("[[replication.target]]\nurl = 'ftp://x'", "v: a target's url begins with https://"),
        ("[[replication.target]]\nurl = 'file:///a'\nlimit = '1'", "v: `1` is not a size"),
        ("[[replication.target]]\nname = 'a'", "v: Object missing required field `url`, at replication.target[0]"),
        (
            "[[replication.target]]\nurl = 'http://a:1/x'\n[[replication.target]]\nurl = 'http://a:1/y'",
            "v: two targets are called a-1: give them a `name` each, at replication.target",
        ),
        (
            "[replication]\ncopies = 2\n[[replication.target]]\nurl = 'file:///a'",
            "v: 2 copies on 1 targets, at replication.copies",
        ),
        ("seal = 3", "v: expected `object`, got `int`, at seal"),
        ("[seal", "v: "),
    ],
)
def test_a_bad_file_is_one_clear_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        config.decode(toml_text.parse_toml(text, "v").unwrap(), "v")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_setting_of_the_command_line_passes_the_same_checks() -> None:
    changed = config.override(Config(), {"snapshots.every": "5s", "mount.allow_other": "false", "seal.threads": "2"})
    assert (changed.snapshots.every, changed.mount.allow_other, changed.seal.threads) == (5, False, 2)
    assert changed.live == Config().live
    for bad in ({"snapshots.evry": "5s"}, {"every": "5s"}, {"seal.threads": "x"}, {"seal.threads": "-1"}):
        with pytest.raises(UserError):
            config.override(Config(), bad)


def _uncommented(template: str) -> dict[str, Any]:
    lines = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in template.splitlines()]
    return tomlkit.parse("\n".join(lines)).unwrap()


def test_the_file_of_a_new_volume_shows_the_defaults_and_sets_none() -> None:
    template = settings_template.template()
    assert config.decode(_uncommented(template), "v") == Config()
    assert all(not table for table in tomlkit.parse(template).unwrap().values())


def test_every_setting_says_why() -> None:
    assert all(len(reason) > 20 and reason.endswith(".") for _, _, reason, _ in settings_template.all_settings())


def test_what_is_encoded_is_decoded_to_the_same() -> None:
    changed = config.override(Config(), {"snapshots.every": "90s", "seal.window": "48MiB"})
    assert config.decode(config.encode(changed), "v") == changed


def test_targets_survive_a_setting_of_the_command_line() -> None:
    text = """
        [replication]
        mode = "bounded"
        [[replication.target]]
        url = "s3://bucket/prefix"
        limit = "5MiB"
        options = {endpoint = "http://127.0.0.1:9000"}
        [[replication.target]]
        url = "file:///mnt/copy"
    """
    decoded = config.decode(toml_text.parse_toml(text, "v").unwrap(), "v")
    changed = config.override(decoded, {"replication.bound": "5s"})
    assert changed.replication.target == decoded.replication.target
    assert [replication_settings.target_name(target) for target in changed.replication.target] == ["bucket", "mnt-copy"]
    assert (changed.replication.bound, changed.replication.target[0].limit) == (5, 5 << 20)


def test_every_setting_of_a_target_says_why() -> None:
    assert all(len(reason) > 20 and reason.endswith(".") for _, reason, _ in settings_template.target_settings())


def test_what_configcheck_shows_of_a_key_is_what_may_be_written() -> None:
    given = config.decode({"replication": {"encryption": {"key_file": "/etc/k"}}}, "here")
    text = "\n".join(
        f"{name} = {settings_template.shown(value)}" for name, value in config.encode(given)["replication"].items()
    )
    assert 'encryption = {key_file = "/etc/k"}' in text
    assert config.decode({"replication": toml_text.parse_toml(text, "here").unwrap()}, "here") == given
    with pytest.raises(UserError, match="not both"):
        config.decode({"replication": {"encryption": {"key_file": "a", "key_command": "b"}}}, "here")


@pytest.mark.parametrize("content", [b"", b"short", bytes(range(256))], ids=["empty", "short", "binary"])
def test_configcheck_reports_a_file_that_holds_no_key(tmp_path: Path, content: bytes) -> None:
    """It read the file and took anything; the next push failed."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    given = config.decode({"replication": {"encryption": {"key_file": str(path)}}}, "here")
    (found,) = problems(given)
    assert "holds no key" in found
    path.write_bytes(b"a passphrase of some length")
    assert list(problems(given)) == []
