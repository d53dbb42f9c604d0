"""An encrypted volume on real mounts and a real mirror: nothing of it can be read there, and all of it comes back."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import re
import subprocess
from pathlib import Path

import tomlkit

from replicator.commands import replicator_cli
from snapfs.store.objects.format import ObjectKind
from snapfs.store.objects.segment_reader import SegmentReader
from tests.conftest import Mounted, run_snapfs
from tests.fakes.targets.mirror_process import MirrorProcess

SECRETS = (b"salaries", b"marker-of-the-content", b"before-the-merger", b"user.private", b"link-to-nowhere")


def make_key(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def configure(volume: Path, *urls: str, key: Path | None) -> None:
    document = tomlkit.parse((volume / "volume.toml").read_text())
    document.setdefault("replication", tomlkit.table())
    replication = document["replication"]
    targets = tomlkit.aot()
    for at, url in enumerate(urls):
        table = tomlkit.table()
        table.update({"name": f"t{at}", "url": url, "token_file": str(volume.parent / "token")})
        targets.append(table)
    replication["target"] = targets  # type: ignore[index]
    if key is not None:
        replication["encryption"] = {"key_file": str(key)}  # type: ignore[index]
    (volume / "volume.toml").write_text(tomlkit.dumps(document))


def replicator(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command, but for a process of its own: these tests have many of them."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = replicator_cli.run([str(argument) for argument in arguments])
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert not check or code == 0, err.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def url(mirror: MirrorProcess, name: str = "pg") -> str:
    return f"http://127.0.0.1:{mirror.port}/{name}"


def fill(root: Path) -> None:
    """Names, attributes and contents that can be searched for; the bytes are such that no compression hides them."""
    rng = random.Random(5)
    (root / "salaries-2026").mkdir()
    for at in range(6):
        data = b"".join(rng.randbytes(500) + b"marker-of-the-content" for _ in range(40 * (at + 1)))
        (root / "salaries-2026" / f"salaries-{at}.db").write_bytes(data)
    os.setxattr(root / "salaries-2026", "user.private", b"user.private of salaries")
    (root / "away").symlink_to("link-to-nowhere")


def tree_of(root: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            found[str(path.relative_to(root))] = os.readlink(path) if path.is_symlink() else path.read_bytes()
    return found


def betrayed(folder: Path, *more: bytes) -> set[bytes]:
    """Which of the secrets are in any file, or the name of one, below a folder."""
    found: set[bytes] = set()
    for path in [folder, *folder.rglob("*")]:
        data = os.fsencode(path.name) + (path.read_bytes() if path.is_file() else b"")
        found |= {secret for secret in (*SECRETS, *more) if secret in data}
    return found


def test_nothing_can_be_read_there_and_all_of_it_here(
    mounted: Mounted, mirror: MirrorProcess, tmp_path: Path, other: Path
) -> None:
    fill(mounted.path)
    mounted.snapshot("before-the-merger")
    key = make_key(tmp_path / "owners.key", "ab" * 32 + "\n")
    configure(mounted.volume, url(mirror), f"file://{tmp_path}/copy", key=key)
    replicator("push", "--once", "--new", mounted.volume)
    (mounted.path / "salaries-2026" / "salaries-7.db").write_bytes(b"marker-of-the-content" * 9)
    mounted.snapshot()
    replicator("push", "--once", "--new", mounted.volume)
    seed = re.search('seed = "(.*)"', (mounted.volume / "volume.toml").read_text())
    assert seed is not None
    for place in (tmp_path / "mirror", tmp_path / "copy"):
        assert betrayed(place, seed[1].encode(), key.read_bytes().strip()) == set()
    configure(mounted.volume, f"file://{tmp_path}/plain", key=None)
    document = (mounted.volume / "volume.toml").read_text()
    (mounted.volume / "volume.toml").write_text(document.replace("key_file", "#key_file"))
    replicator("push", "--once", "--new", mounted.volume)
    assert len(betrayed(tmp_path / "plain")) >= 4, "what is searched for would be found"

    assert "all is good" in replicator("verify", "--root", tmp_path / "mirror").stdout
    assert "pg: encrypted; snapshot 2 " in replicator("list", tmp_path / "mirror").stdout
    token = ("--token-file", tmp_path / "token")
    wrong = make_key(tmp_path / "wrong.key", "cd" * 32)
    for options, why in ((("--key-file", wrong), "is not the key of"), ((), "is encrypted: give its key")):
        result = run_snapfs("mount", "--from", url(mirror), *token, *options, tmp_path / "new", other, check=False)
        assert result.returncode == 3
        assert why in result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert not (tmp_path / "new").exists()
    run_snapfs("mount", "--from", url(mirror), *token, "--key-file", key, tmp_path / "new", other)
    assert tree_of(other) == tree_of(mounted.path)
    assert os.getxattr(other / "salaries-2026", "user.private") == b"user.private of salaries"
    lazy = Mounted(tmp_path / "new", other)
    (other / "salaries-2026" / "salaries-8.db").write_bytes(b"of the new host")
    lazy.snapshot("of-the-new-host")
    result = run_snapfs("list", lazy.volume)
    assert "of-the-new-host" in result.stdout
    run_snapfs("umount", other)

    # Failback: the new host goes on pushing with the same keys, the old one is refused, and follows.
    configure(lazy.volume, url(mirror), key=None)
    assert (lazy.volume / "keys.json").read_bytes() == (mounted.volume / "keys.json").read_bytes()
    replicator("push", "--once", "--new", lazy.volume)
    assert betrayed(tmp_path / "mirror", b"of the new host") == set()
    configure(mounted.volume, url(mirror), key=key)
    refused = replicator("push", "--once", "--new", mounted.volume, check=False)
    assert refused.returncode == 3
    assert "generation" in refused.stderr
    run_snapfs("standby", tmp_path / "standby", "--from", url(mirror), *token, "--key-file", key, "--once")
    run_snapfs("mount", tmp_path / "standby", other)
    assert (other / "salaries-2026" / "salaries-8.db").read_bytes() == b"of the new host"


def test_turning_it_on_and_off_and_a_folder_as_source(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    fill(mounted.path)
    mounted.snapshot()
    copy = tmp_path / "copy"
    configure(mounted.volume, f"file://{copy}", key=None)
    replicator("push", "--once", "--new", mounted.volume)
    key = make_key(tmp_path / "owners.key", "a passphrase that is hard to guess\n")
    configure(mounted.volume, f"file://{copy}", key=key)
    refused = replicator("push", "--once", "--new", mounted.volume, check=False)
    assert refused.returncode == 3
    assert "another name" in refused.stderr
    sealed = tmp_path / "sealed"
    configure(mounted.volume, f"file://{sealed}", key=key)
    replicator("push", "--once", "--new", mounted.volume)
    key.chmod(0o644)
    open_to_all = replicator("push", "--once", "--new", mounted.volume, check=False)
    assert (open_to_all.returncode, "chmod 600" in open_to_all.stderr) == (3, True)
    key.chmod(0o600)
    document = (mounted.volume / "volume.toml").read_text()
    (mounted.volume / "volume.toml").write_text(document.replace("key_file", "#key_file"))
    off = replicator("push", "--once", "--new", mounted.volume, check=False)
    assert (off.returncode, "kept there encrypted" in off.stderr) == (3, True)
    for arguments in (("list", sealed), ("mount", sealed, other)):
        result = run_snapfs(*arguments, check=False)
        assert (result.returncode, "of an encrypted volume" in result.stderr) == (3, True)
    command = f"cat {key}"
    run_snapfs("mount", "--from", sealed, "--key-command", command, tmp_path / "new", other)
    assert tree_of(other) == tree_of(mounted.path)
    assert tomlkit.parse((tmp_path / "new" / "volume.toml").read_text())["replication"]["encryption"] == {  # type: ignore[index]
        "key_command": command
    }
    run_snapfs("umount", other)
    run_snapfs("mount", "--from", copy, "--key-file", key, "--force", tmp_path / "of-plain", other)
    plain = tomlkit.parse((tmp_path / "of-plain" / "volume.toml").read_text())
    assert "encryption" not in plain.get("replication", {})


def test_keys_are_rotated_and_rewrapped(mounted: Mounted, mirror: MirrorProcess, tmp_path: Path, other: Path) -> None:
    fill(mounted.path)
    mounted.snapshot()
    old, new = make_key(tmp_path / "old.key", "ab" * 32), make_key(tmp_path / "new.key", "cd" * 32)
    configure(mounted.volume, url(mirror), key=old)
    assert "makes them" in replicator("key", "show", mounted.volume, check=False).stderr
    replicator("key", "create", mounted.volume)
    assert replicator("key", "create", mounted.volume, check=False).returncode == 3
    replicator("push", "--once", "--new", mounted.volume)
    assert "1 older ones" in replicator("key", "rotate", mounted.volume).stdout
    (mounted.path / "salaries-late").write_bytes(b"marker-of-the-content" * 100)
    mounted.snapshot()
    replicator("push", "--once", "--new", mounted.volume)
    result = replicator("key", "rewrap", mounted.volume, "--new-key-file", new)
    assert f'key_file = "{new}"' in result.stdout
    behind = replicator("push", "--once", "--new", mounted.volume, check=False)
    assert (behind.returncode, "is not the key of" in behind.stderr) == (3, True)
    configure(mounted.volume, url(mirror), key=new)
    replicator("push", "--once", "--new", mounted.volume)
    at_the_mirror = tmp_path / "mirror" / "pg"
    assert (at_the_mirror / "keys.json").read_bytes() == (mounted.volume / "keys.json").read_bytes()
    assert (mounted.volume / "keys.json").stat().st_mode & 0o077 == 0
    shown = [replicator("key", "show", place).stdout for place in (mounted.volume, at_the_mirror)]
    assert shown[0].startswith(shown[1])
    assert betrayed(tmp_path / "mirror") == set()
    mirror.stop()
    failed = run_snapfs("mount", "--from", at_the_mirror, "--key-file", old, tmp_path / "new", other, check=False)
    assert (failed.returncode, "is not the key of" in failed.stderr) == (3, True)
    run_snapfs("mount", "--from", at_the_mirror, "--key-file", new, tmp_path / "new", other)
    assert tree_of(other) == tree_of(mounted.path)


def test_a_repair_brings_back_what_an_encrypted_target_has(
    mounted: Mounted, mirror: MirrorProcess, tmp_path: Path
) -> None:
    fill(mounted.path)
    mounted.snapshot()
    key = make_key(tmp_path / "owners.key", "ab" * 32)
    configure(mounted.volume, url(mirror), key=key)
    replicator("push", "--once", "--new", mounted.volume)
    expected = tree_of(mounted.path)
    for path in (mounted.path / "salaries-2026").iterdir():
        path.write_bytes(b"nothing of it is here any more")
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    segment = min((mounted.volume / "store" / "segments").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    row = next(row for row in SegmentReader(str(segment)).rows() if row.kind == ObjectKind.CHUNK)
    data[row.offset + 40] ^= 0xFF
    segment.write_bytes(data)
    assert run_snapfs("verify", mounted.volume, check=False).returncode == 5
    key.chmod(0o644)
    result = run_snapfs("verify", "--repair", mounted.volume, check=False)
    assert (result.returncode, "chmod 600" in result.stderr) == (5, True)
    key.chmod(0o600)
    result = run_snapfs("verify", "--repair", mounted.volume)
    assert "requesting from t0 what is found nowhere here" in result.stderr
    run_snapfs("restore", mounted.volume, "1", tmp_path / "back")
    assert tree_of(tmp_path / "back") == expected
