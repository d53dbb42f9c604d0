"""What is not as it should be is one line, never a traceback; with --json it is JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replicator.commands import replicator_cli
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.settings import config, replication_settings, toml_text
from snapfs.base.volumes.volume import Volume
from snapfs.commands import cli
from tests.conftest import Mounted
from tests.fakes.targets.s3_server import start_obstore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let obstore open what it keeps for the life of the process, so that no test seems to leak it."""
    start_obstore()
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "token").write_text("id secret")
    reach = ["--token-file", str(folder / "token"), "--store-option", "endpoint=http://127.0.0.1:9"]
    cli.run(["list", "s3://b/p", *reach, "--store-option", "region=x", "--store-option", "allow_http=true"])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files that no one can make sense of, and a volume."""
    Volume.create(str(tmp_path / "volume"), Disk())
    (tmp_path / "latin").write_bytes(b"\xe9\xff\x00")
    (tmp_path / "wide").write_text("gehe\N{EURO SIGN}im\r\nx")
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").chmod(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "mnt").mkdir()
    broken = tmp_path / "broken"
    Volume.create(str(broken), Disk())
    (broken / "volume.toml").write_bytes(b"\xff\xfe")
    return tmp_path


@pytest.mark.parametrize("program", ["snapfs", "replicator"])
@pytest.mark.parametrize("as_json", [False, True])
def test_whatever_a_file_holds_is_one_line(
    libraries: None,
    place: Path,
    program: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = ["latin", "wide", "empty", "folder", "missing"]
    url = "http://127.0.0.1:9/pg"
    snapfs = [
        *(["configcheck", name] for name in (*files, "broken") if name != "empty"),
        *(["list", url, "--token-file", name] for name in files),
        *(["list", "https://127.0.0.1:9/pg", "--ca", name] for name in files),
        *(["list", "https://127.0.0.1:9/pg", "--certificate", name] for name in files),
        *(["list", "s3://b/p", "--token-file", name] for name in files if name not in ("empty",)),
        *([command, "broken"] for command in ("list", "status", "log", "verify")),
        ["list", "missing"], ["show", "missing", "1"], ["diff", "broken", "1", "2"], ["restore", "broken", "1", "to"],
        ["fetch", "file:///missing", "to"], ["fetch", url, "to"], ["clone", "broken", "1", "to"],
    ]  # fmt: skip
    replicator = [
        *(["list", url, "--token-file", name] for name in files),
        *(["list", name] for name in ("latin", "missing")),
        *(["status", name] for name in (*files, "broken")),
        *(["fetch", "s3://b/p", "to", "--token-file", name] for name in files if name != "empty"),
        *(["fetch", "file:///missing", "to", "--key-file", name] for name in files),
        *(["verify", "--root", name] for name in ("latin", "missing")),
    ]
    run = cli.run if program == "snapfs" else replicator_cli.run
    monkeypatch.chdir(place)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    for name, value in {"AWS_REGION": "x", "AWS_ENDPOINT": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    for words in snapfs if program == "snapfs" else replicator:
        code = run([*words, *(["--json"] if as_json else [])])
        printed = capsys.readouterr().err
        assert code not in (0, 70), (words, printed)
        assert "Traceback" not in printed, (words, printed)
        if as_json and printed:
            facts = json.loads(printed.splitlines()[-1])
            assert (facts["exit_code"], bool(facts["error"])) == (code, True), words
        elif printed:
            assert printed.splitlines()[-1].startswith(("snapfs: ", "snapfs-replicator: ")), words


def test_a_usage_error_with_json_is_json(snapfs: Any) -> None:
    done = snapfs("list", "--json", check=False)
    facts = json.loads(done.stderr)
    assert (facts["exit_code"], facts["program"], "Missing argument" in facts["error"]) == (2, "snapfs", True)
    assert done.stdout == ""


# settings


def write(place: Path, text: str) -> Path:
    path = place / "settings.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ('token_file = "{p}/missing"', "missing: the token cannot be read"),
        ('token_file = "{p}/latin"', "latin: the token cannot be read"),
        ('ca = "{p}/empty"', "empty"),
        ('ca = "{p}/missing"', "missing"),
        ('certificate = "{p}/latin"', "latin"),
        ('key = "{p}/latin"', "belongs to a certificate"),
        ('token_file = "${{NOT_SET_ANYWHERE}}"', "NOT_SET_ANYWHERE is not set in the environment"),
        ('name = "x"\n[replication.encryption]\nkey_file = "{p}/missing"', "encryption: "),
        ('name = "x"\n[replication.encryption]\nkey_file = "{p}/folder"', "encryption: "),
        ('name = "x"\n[replication.encryption]\nkey_command = "no-such-program x"', "no-such-program is not there"),
    ],
)
def test_configcheck_reads_the_files_that_are_named(snapfs: Any, place: Path, setting: str, line: str) -> None:
    path = write(place, f'[[replication.target]]\nurl = "https://mirror:1/pg"\n{setting.format(p=place)}\n')
    done = snapfs("configcheck", path, check=False)
    assert (done.returncode, line in done.stderr, len(done.stderr.splitlines())) == (3, True, 1), done.stderr
    assert "replication.mode = " in done.stdout
    facts = json.loads(snapfs("configcheck", "--json", path, check=False).stdout)
    assert len(facts["problems"]) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[control]\nallow = {rolback = []}", "control.allow: there is no command `rolback`"),
        ('[control]\nallow = {drop = ["no-such-user", "0"]}', "control.allow: this host knows no user 'no-such-user'"),
        ('[control]\nallow = {drop = ["@no-such-group", "@0"]}', "this host knows no group 'no-such-group'"),
        ('[audit]\nsign_key = "{p}/missing"', "audit.sign_key: {p}/missing"),
        ('[audit]\nsign_key = "{p}/latin"', "latin: no private key"),
    ],
)
def test_configcheck_finds_who_is_nobody_and_a_key_that_is_none(snapfs: Any, place: Path, text: str, line: str) -> None:
    done = snapfs("configcheck", write(place, text.replace("{p}", str(place))), check=False)
    assert (done.returncode, line.replace("{p}", str(place)) in done.stderr) == (3, True), done.stderr


def test_a_variable_is_put_in_where_it_is_used_and_never_printed(
    snapfs: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_STORE", "tiger")
    monkeypatch.setenv("MIRROR", "mirror.example")
    path = write(
        place,
        '[[replication.target]]\nurl = "https://${MIRROR}:1/pg"\n'
        '[[replication.target]]\nurl = "s3://b/p"\n'
        'options = {access_key_id = "x", secret_access_key = "${SECRET_OF_THE_STORE}"}\n',
    )
    done = snapfs("configcheck", path)
    assert "tiger" not in done.stdout + done.stderr
    assert "${SECRET_OF_THE_STORE}" in done.stdout
    mirror, store = config.decode(toml_text.read_toml(path.read_text(), "x"), "x").replication.target
    assert replication_settings.expanded(mirror).url == "https://mirror.example:1/pg"
    assert replication_settings.expanded(store).options == {"access_key_id": "x", "secret_access_key": "tiger"}
    monkeypatch.delenv("MIRROR")
    with pytest.raises(UserError, match="MIRROR is not set"):
        replication_settings.expanded(mirror)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[replication]\nmode = "x"', "write async, bounded or sync, at replication.mode"),
        ('[live]\ndata_path = "x"', "write auto, native or python, at live.data_path"),
        ('[mount]\nallow_other = "x"', "write true, false or auto, at mount.allow_other"),
        ('[[replication.target]]\nurl = "ftp://x"', "begins with https://, http://, file:///, s3://, gs:// or az://"),
        ('[[replication.target]]\nurl = "s3://x"\nname = "X Y"', "a name has at most 40 of a-z"),
        ("[seal]\n[seal]", "the table [seal] is there twice, put its settings under the first"),
    ],
)
def test_configcheck_lists_the_values_that_it_wants(snapfs: Any, place: Path, text: str, line: str) -> None:
    done = snapfs("configcheck", write(place, text), check=False)
    assert (done.returncode, line in done.stderr) == (3, True), done.stderr


def test_the_manuals_example_can_be_appended_to_the_file_that_snapfs_makes(place: Path) -> None:
    manual = (ROOT / "docs" / "snapfs-agent.1.md").read_text()
    example = manual.partition("with a table for each:\n\n")[2].partition("\n\n`agent`")[0]
    lines = [line.removeprefix("    ") for line in example.splitlines()]
    assert "[replication]" in lines
    toml = place / "volume" / "volume.toml"
    with open(toml, "a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines) + "\n")
    found = Volume.open(str(place / "volume"), Disk()).config.replication
    assert [each.url.partition("://")[0] for each in found.target] == ["https", "s3", "file"]


def test_a_volume_can_be_made_with_settings_of_replication(tmp_path: Path) -> None:
    settings = {"replication": {"copies": 1, "encryption": {"key_file": "/k"}}, "seal": {"threads": 2}}
    made = Volume.create(str(tmp_path / "v"), Disk(), settings=settings)
    assert (made.config.replication.encryption.key_file, made.config.seal.threads) == ("/k", 2)


def test_what_reorders_a_line_does_not_reach_the_terminal(mounted: Mounted, snapfs: Any, tmp_path: Path) -> None:
    """U+202E lets a name read as another one."""
    name, shown = "gp\u202e4pm.exe", "gp\\xe2\\x80\\xae4pm.exe"
    mounted.snapshot(name)
    mounted.snapshot()
    commands = [
        ["list", mounted.path], ["show", mounted.path, name], ["log", mounted.path], ["audit", mounted.volume],
        ["snapshot", mounted.path, name], ["status", mounted.path],
        ["hold", mounted.path, "1", "--why", name], ["show", mounted.path, "1"], ["drop", mounted.path, name],
        ["mount", "--from", mounted.volume, "--at", name, tmp_path / "at", tmp_path],
        ["drill", mounted.path, "--check", "true", "--at", name + "x"],
    ]  # fmt: skip
    written = ""
    for words in commands:
        done = snapfs(*words, check=False)
        assert "\u202e" not in done.stdout + done.stderr, words
        written += done.stdout + done.stderr
    assert written.count(shown) >= 6


def test_a_reason_or_a_name_of_two_lines_is_one_clear_line(mounted: Mounted, snapfs: Any) -> None:
    mounted.snapshot()
    for words, why in (
        (["hold", mounted.path, "1", "--why", "one\ntwo"], "the reason of a hold is one line of at most "),
        (["snapshot", mounted.path, "one\ntwo"], "'one\\ntwo': a name or a reason is one line"),
        (["release", mounted.path, "one\ntwo"], "'one\\ntwo': a name or a reason is one line"),
    ):
        done = snapfs(*words, check=False)
        assert (done.returncode, len(done.stderr.splitlines()), why in done.stderr) == (3, 1, True), done.stderr
