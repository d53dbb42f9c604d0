"""What the commands print, word for word, on a history that is the same every time.

`SNAPFS_GOLDEN=write pytest tests/commands/test_commands_golden.py` writes the expected texts anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.patience import PATIENCE_S

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cli"
Snapfs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, snapfs: Snapfs) -> Iterator[Path]:
    """A folder with `mnt`, where `volume` is mounted: three snapshots, and what came after them."""
    base = tmp_path_factory.mktemp("history")
    mountpoint = base / "mnt"
    mountpoint.mkdir()
    snapfs("mount", base / "volume", mountpoint)
    try:
        make_history(mountpoint, snapfs)
        yield base
    finally:
        snapfs("umount", mountpoint)


def make_history(mnt: Path, snapfs: Snapfs) -> None:
    (mnt / "kept").write_bytes(b"k" * 100_000)
    (mnt / "changed").write_bytes(b"a" * 200_000)
    (mnt / "removed").write_text("gone soon")
    (mnt / "folder").mkdir()
    (mnt / "folder" / "file").write_text("moves along")
    (mnt / "link").symlink_to("kept")
    snapfs("snapshot", mnt, "first")
    with open(mnt / "changed", "r+b") as file:
        file.seek(5000)
        file.write(b"b")
    (mnt / "removed").unlink()
    (mnt / "folder").rename(mnt / "renamed")
    (mnt / "added").write_text("new")
    Path(os.fsdecode(bytes(mnt) + b"/odd \xff\nname")).write_text("x")
    snapfs("snapshot", mnt)
    snapfs("snapshot", mnt, "with space", "--no-flush")
    snapfs("verify", mnt)
    (mnt / "after").write_text("not in a snapshot")


def normalised(text: str, base: Path) -> str:
    """Without what differs from run to run: places, times, sizes after compression, processes, ids."""
    rules = [
        (re.escape(str(base)), "BASE"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r'("[a-z_]*time_ns": ?)\d+', r"\1TIME"),
        (r"\b[0-9a-f]{32}\b", "HEX"),
        (
            r'("(?:stored_bytes|written_bytes|new_objects|seconds|seal_seconds|number)": ?)'
            r'[\d.e-]+(,?\n? *"content_hash)?',
            r"\1N\2",
        ),
        (
            r"\b((\d+ h )?\d+ min( \d+ s)?|\d+(\.\d+)? (ms|s|B|KiB|MiB|GiB)(/s)?)( old)?(?=\W|$)",
            "AMOUNT",
        ),
        (r"\b[0-9a-f]{16}\b", "NUMBER"),
        (r"process \d+", "process PID"),
        (r"\b(in|checked \d+ snapshots:) \d+ objects", r"\1 N objects"),
        (r"last_number=\d+", "last_number=N"),
        (r" +(AMOUNT)", r" \1"),
        (r"(?m)^TIME verified .*\n", ""),  # one more with each `verify` of this module
    ]
    for pattern, substitute in rules:
        text = re.sub(pattern, substitute, text)
    return text


def check(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SNAPFS_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"differs from {path}"


FACTS = [
    ("list", "list {place}"),
    ("list_json", "list {place} --json"),
    ("show", "show {place} first"),
    ("show_json", "show {place} 2 --json"),
    ("diff", "diff {place} first 2"),
    ("diff_json", "diff {place} 1 2 --json"),
    ("diff_summary", "diff {place} first 2 --summary"),
    ("diff_stat", "diff --stat {place} first 2"),
    ("diff_nothing", "diff {place} 2 3"),
    ("drop_dry_run", "drop {place} first 2 --dry-run"),
    ("log", "log {place}"),
    ("verify", "verify {place}"),
    ("verify_one", "verify {place} first"),
]


@pytest.mark.parametrize(("name", "command"), FACTS, ids=[name for name, _ in FACTS])
@pytest.mark.parametrize("place", ["mnt", "volume", "mnt/renamed"])
def test_facts_are_the_same_by_mountpoint_and_by_volume(
    history: Path, snapfs: Snapfs, name: str, command: str, place: str
) -> None:
    done = snapfs(*(word.format(place=history / place) for word in command.split()))
    stderr = f"-- stderr\n{done.stderr}" if done.stderr else ""
    check(name, normalised(done.stdout + stderr, history))


@pytest.mark.parametrize("age", ["0.0 ms", "119.9 s", "2 min 5 s", "1 h 0 min"])
def test_an_age_of_any_length_is_an_amount(age: str) -> None:
    """On a loaded machine the history of this module is minutes old before the last of its tests looks at it."""
    assert normalised(f"good, {age} old\n{age}", Path("/base")) == "good, AMOUNT\nAMOUNT"


OF_THE_TREE = [("find", "find {place} **"), ("find_json", "find --json {place} [cr]*")]


@pytest.mark.parametrize(("name", "command"), OF_THE_TREE, ids=[name for name, _ in OF_THE_TREE])
@pytest.mark.parametrize("place", ["mnt", "volume"])
def test_facts_of_paths_from_the_top_of_the_tree(
    history: Path, snapfs: Snapfs, name: str, command: str, place: str
) -> None:
    """A folder below a mountpoint is no place here: it would be a path itself."""
    done = snapfs(*(word.format(place=history / place) for word in command.split()))
    check(name, normalised(done.stdout, history))


def test_the_status_of_a_mount(history: Path, snapfs: Snapfs) -> None:
    text = normalised(snapfs("status", history / "mnt").stdout, history)
    check("status", re.sub(r"dirty .*", "dirty       ...", re.sub(r"cut pause .*", "cut pause   ...", text)))
    facts = json.loads(snapfs("status", history / "mnt", "--json").stdout)
    assert facts["mounted"] is True
    assert facts["last_snapshot"]["name"] == "with space"


COMMANDS = (
    "mount umount upgrade snapshot list show diff drop log restore rollback clone fetch standby status verify"
    " configcheck doctor metrics volumes audit drill fork find cat undelete du"
)


@pytest.mark.parametrize("command", ["", *COMMANDS.split()])
def test_help(snapfs: Snapfs, command: str) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    text = snapfs(*([command] if command else []), "--help", env=environment).stdout
    text = re.sub(r"default: \d+;", "default: N;", text)
    check(f"help_{command or 'snapfs'}", text)
    assert (
        re.sub(r"default: \d+;", "default: N;", snapfs("help", *([command] if command else []), env=environment).stdout)
        == text
    )


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from snapfs.base import errors

    text = (GOLDEN / "help_snapfs.txt").read_text()
    listed = {int(number) for number in re.findall(r"^ +(\d+)  ", text.partition("Exit codes:")[2], re.MULTILINE)}
    assert listed == {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {130, 141}


NO_VOLUME = "is neither a volume nor inside a snapfs mount: `snapfs volumes` shows those there are"
WRONG: list[tuple[str, int, str]] = [
    ("", 2, "Missing command. (see `snapfs --help`)"),
    ("frobnicate", 2, "No such command 'frobnicate'. (see `snapfs --help`)"),
    ("list", 2, "Missing argument 'PLACE'. (see `snapfs list --help`)"),
    ("list {base}/mnt --frob", 2, "No such option"),
    ("list {base}/nothing", 3, "{base}/nothing does not exist: name a mountpoint or a volume"),
    ("list {base}", 3, f"{{base}} {NO_VOLUME}"),
    ("status /proc/version", 3, f"/proc/version {NO_VOLUME}"),
    ("diff {base}/mnt 1 2 --stat --patch", 2, "--summary, --stat and --patch exclude each other."),
    ("cat", 2, "Missing argument 'SNAPSHOT:PATH...'. (see `snapfs cat --help`)"),
    ("cat {base}/mnt first:nope", 3, "snapshot 1 has no 'nope'"),
    ("restore {base}/mnt", 2, "Write [PLACE] SNAPSHOT[:PATH] DEST. (see `snapfs restore --help`)"),
    ("undelete {base}/volume/kept", 3, "{base}/volume/kept is not inside a snapfs mount"),
    ("du {base}/mnt 7-9", 3, "there is no snapshot from 7 to 9; `snapfs list` shows those there are"),
    ("du https://h/db", 3, "https://h/db is not on this host: `snapfs fetch` brings its history here"),
    ("find", 2, "Missing argument 'PATH...'. (see `snapfs find --help`)"),
    ("find {base}/mnt", 2, "Missing argument 'PATH...'. (see `snapfs find --help`)"),
    ("find {base}/mnt nope a/*", 3, "no snapshot of {base}/mnt has nope, a/*"),
    ("find {base}/mnt ../kept", 3, "'../kept' is no path in a snapshot: write it from its top folder, without .."),
    ("find kept", 3, "kept is not inside a snapfs mount: name PLACE first, a mountpoint, a volume or a URL"),
    ("show {base}/mnt 99", 3, "there is no snapshot '99'; `snapfs list` shows those there are"),
    ("show {base}/mnt nope", 3, "there is no snapshot 'nope'; `snapfs list` shows those there are"),
    ("diff {base}/mnt first nope", 3, "there is no snapshot 'nope'; `snapfs list` shows those there are"),
    ("drop {base}/mnt nope", 3, "there is no snapshot 'nope'; `snapfs list` shows those there are"),
    ("drop {base}/mnt", 2, "Missing argument 'SNAPSHOT...'. (see `snapfs drop --help`)"),
    ("restore {base}/mnt nope {base}/out", 3, "there is no snapshot 'nope'; `snapfs list` shows those there are"),
    (
        "restore {base}/mnt first {base}/volume",
        3,
        "{base}/volume exists and is not an empty directory; restore to a new place",
    ),
    ("restore {base}/mnt first /nope/out", 3, "cannot restore to /nope/out: No such file or directory"),
    (
        "restore {base}/mnt first {base}/out --threads 0",
        2,
        "Invalid value for '--threads': 0 is not in the range 1<=x<=64.",
    ),
    ("clone {base}/mnt first {base}/volume", 3, "{base}/volume exists already"),
    ("snapshot {base}/mnt first", 3, "there is a snapshot named first already: drop it or choose another"),
    ("snapshot {base}/mnt 12", 3, "'12' cannot be a snapshot's name: numbers are the names they have anyway"),
    ("snapshot {base}/mnt a/b", 3, "'a/b' cannot be a snapshot's name: it has to be a plain file name"),
    ("rollback {base}/mnt nope", 3, "there is no snapshot 'nope'; `snapfs list` shows those there are"),
    ("configcheck", 2, "Name a VOLUME or a FILE, or use --defaults. (see `snapfs configcheck --help`)"),
    ("configcheck {base}/nothing", 3, "{base}/nothing does not exist: name a mountpoint or a volume"),
    ("help frobnicate", 2, "No such command 'frobnicate'. (see `snapfs --help`)"),
]


@pytest.mark.parametrize(("command", "code", "line"), WRONG, ids=[command for command, _, _ in WRONG])
def test_what_is_wrong_is_one_line_and_a_code(
    history: Path, snapfs: Snapfs, command: str, code: int, line: str
) -> None:
    done = snapfs(*(word.format(base=history) for word in command.split()), check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"snapfs: {line.format(base=history)}")
    assert len(done.stderr.splitlines()) == 1


def test_doctor_has_a_line_for_each_check(history: Path, snapfs: Snapfs) -> None:
    findings = json.loads(snapfs("doctor", history / "volume", "--json").stdout)
    checks = {finding["check"]: finding["level"] for finding in findings}
    assert {
        "/dev/fuse",
        "fusermount3",
        "kernel",
        "data path",
        "restarts",
        "open files",
        "filesystem",
        "volume",
        "log",
        "live tree",
    } <= checks.keys()
    assert "bad" not in checks.values()
    listed = [line[8:].strip() for line in snapfs("doctor", history / "volume").stdout.splitlines()]
    unlisted = {check for check in checks if not any(line.startswith(check) for line in listed)}
    assert unlisted <= {"dead mount", "silent mount"}  # the mounts of others come and go


def test_a_reader_that_stops_reading_ends_us_quietly(history: Path, snapfs: Snapfs) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = shlex.split(_command("configcheck", "--defaults"))
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_S)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_progress_is_shown_when_asked_for_and_stays_off_stdout(history: Path, snapfs: Snapfs, tmp_path: Path) -> None:
    done = snapfs("restore", history / "volume", "first", tmp_path / "out", "--progress", "--json")
    assert "restore: 100%" in done.stderr
    assert json.loads(done.stdout)["snapshot"] == 1
    assert snapfs("verify", history / "volume").stderr == ""  # no terminal, not requested


def test_an_interrupt_is_a_line_and_a_code(history: Path) -> None:
    words = shlex.split(_command("log", "--follow", str(history / "volume")))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "created" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.stderr.read() == "snapfs: interrupted\n"


def _command(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "snapfs", *words])


def test_configcheck_reads_a_file_before_it_is_a_volumes(snapfs: Snapfs, tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    file.write_text(snapfs("configcheck", "--defaults").stdout + "\n[other]\nx = 1\n")
    done = snapfs("configcheck", file, check=False)
    assert (done.returncode, done.stderr) == (3, f"snapfs: {file}: unknown setting `other`\n")
    file.write_text('[snapshots]\nevery = "90s"\n')
    assert 'snapshots.every = "90s"' in snapfs("configcheck", file).stdout
    assert json.loads(snapfs("configcheck", file, "--json").stdout)["snapshots"]["every"] == "90s"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://h:99999/db", "with a-z, 0-9, - and _ in VOLUME (Port out of range 0-65535)"),
        ("https://h:0/db", "with a-z, 0-9, - and _ in VOLUME (there is no port 0)"),
        ("http://h/DB../x", "with a-z, 0-9, - and _ in VOLUME"),
        ("http:///db", "with a-z, 0-9, - and _ in VOLUME"),
        ("file:///", "file:///: write file:///FOLDER, with the whole path"),
        ("file:////.", "write file:///FOLDER, with the whole path"),
        ("file://x/y", "write file:///FOLDER, with the whole path"),
    ],
)
def test_configcheck_refuses_a_url_that_can_be_no_targets(snapfs: Snapfs, tmp_path: Path, url: str, line: str) -> None:
    file = tmp_path / "new.toml"
    (tmp_path / "token").write_text("snapfs_01234567_" + "x" * 43)
    file.write_text(f'[[replication.target]]\nname = "t"\nurl = "{url}"\ntoken_file = "{tmp_path}/token"\n')
    done = snapfs("configcheck", file, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert done.stderr.startswith("snapfs: target t: ")
    assert done.stderr.endswith(f"{line}\n")


def test_what_was_damaged_is_reported_and_marked(snapfs: Snapfs, tmp_path: Path, mountpoint: Path) -> None:
    volume = tmp_path / "volume"
    snapfs("mount", volume, mountpoint)
    (mountpoint / "a").write_bytes(os.urandom(300_000))
    snapfs("snapshot", mountpoint, "whole")
    (mountpoint / "b").write_bytes(os.urandom(300_000))
    snapfs("snapshot", mountpoint, "hurt")
    (mountpoint / "b").write_bytes(os.urandom(300_000))  # or else it could be repaired from here
    snapfs("umount", mountpoint)
    segment = sorted((volume / "store" / "segments").iterdir())[-1]
    with open(segment, "r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    done = snapfs("verify", volume, check=False)
    assert done.returncode == 5
    assert "needed by snapshots 2" in done.stdout
    assert "damaged snapshots: 2" in done.stdout
    assert snapfs("verify", volume, "whole").returncode == 0
    done = snapfs("verify", "--repair", volume, check=False)
    assert done.returncode == 5
    assert "marked snapshot 2 as damaged" in done.stderr
    states = {record["name"]: record["state"] for record in json.loads(snapfs("list", volume, "--json").stdout)}
    assert states == {"whole": "good", "hurt": "damaged"}
    done = snapfs("restore", volume, "hurt", tmp_path / "out", check=False)
    assert done.returncode == 5
    assert not (tmp_path / "out").exists()
    assert snapfs("doctor", volume, check=False).returncode == 5


def test_a_broken_log_is_rebuilt(snapfs: Snapfs, tmp_path: Path, mountpoint: Path) -> None:
    volume = tmp_path / "volume"
    snapfs("mount", volume, mountpoint)
    for name in ("one", "two", "three"):
        (mountpoint / name).write_text(name)
        snapfs("snapshot", mountpoint, name)
    snapfs("umount", mountpoint)
    log = volume / "store" / "snapshots.log"
    log.write_bytes(log.read_bytes().replace(b'"two"', b'"owt"'))
    done = snapfs("list", volume, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (5, 1)
    done = snapfs("mount", volume, mountpoint, check=False)
    assert done.returncode == 5
    assert done.stderr.endswith(f"; `snapfs doctor {volume}` states what can be done\n")
    assert f"`snapfs verify --repair {volume}` makes a new log" in snapfs("doctor", volume, check=False).stdout
    assert "rebuilt snapshots.log" in snapfs("verify", "--repair", volume).stderr
    records = json.loads(snapfs("list", volume, "--json").stdout)
    assert [record["name"] for record in records] == ["one", "two", "three"]
    snapfs("mount", volume, mountpoint)
    assert (mountpoint / "three").read_text() == "three"


def going_back(snapfs: Snapfs, place: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(snapfs("rollback", place, "before", "--json").stdout)
    return facts


@pytest.mark.parametrize("mounted_meanwhile", [True, False])
def test_rollback_and_clone(snapfs: Snapfs, tmp_path: Path, mountpoint: Path, mounted_meanwhile: bool) -> None:
    volume = tmp_path / "volume"
    snapfs("mount", volume, mountpoint)
    (mountpoint / "a").write_text("before")
    snapfs("snapshot", mountpoint, "before")
    (mountpoint / "a").write_text("after")
    (mountpoint / "b").write_text("after")
    if mounted_meanwhile:
        facts = going_back(snapfs, mountpoint)
    else:
        snapfs("umount", mountpoint)
        facts = going_back(snapfs, volume)
        snapfs("mount", volume, mountpoint)
    assert (facts["target"], facts["kept"]) == (1, 2)
    assert (mountpoint / "a").read_text() == "before"
    assert os.listdir(mountpoint) == ["a"]
    assert (mountpoint / ".snapfs/snapshots/2/b").read_text() == "after"
    assert json.loads(snapfs("status", mountpoint, "--json").stdout)["generation"] == 2

    snapfs("clone", mountpoint, "2", tmp_path / "clone")
    done = snapfs("mount", tmp_path / "clone", tmp_path / "mnt2", check=False)
    assert done.returncode == 3  # no such mountpoint
    (tmp_path / "mnt2").mkdir()
    done = snapfs("mount", tmp_path / "clone", tmp_path / "mnt2", "--", "cat", tmp_path / "mnt2" / "b")
    assert done.stdout == "after"


def test_a_rollback_does_not_pull_files_from_under_a_writer(snapfs: Snapfs, mounted: Any) -> None:
    (mounted.path / "a").write_text("before")
    mounted.snapshot("before")
    with open(mounted.path / "a", "a") as file:
        file.write("after")
        file.flush()
        done = snapfs("rollback", mounted.path, "before", check=False)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1
        assert (mounted.path / "a").read_text() == "beforeafter"
        assert snapfs("rollback", mounted.path, "before", "--force").returncode == 0
    assert (mounted.path / "a").read_text() == "before"
