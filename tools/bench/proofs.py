"""The measurements of what proves a history: the pause of a group's cut, and how long a drill takes.

Both are those that the commands themselves report, of real mounts on the disk that is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from measures import MIB, percentiles, write_file
from mounts import SNAPFS, mounted, snapfs

from replicator.mirror.tokens import Tokens
from snapfs.commands.groups.coordinator import Coordinator, Member
from snapfs.commands.support.locate import locate

MEMBERS = 4
REPLICATOR = [sys.executable, "-P", "-m", "replicator"]


def group_pauses(base: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Pause of a cut of four volumes in milliseconds: how long any gate was closed. Each member has a dirty file."""
    cuts = 50 if quick else 1000
    volumes = [base / f"v{number}" for number in range(MEMBERS)]
    places = [base / f"m{number}" for number in range(MEMBERS)]
    try:
        for volume, place in zip(volumes, places, strict=True):
            place.mkdir()
            snapfs("mount", "-o", "snapshots.every=off,snapshots.keep=20", str(volume), str(place))
        found = [locate(str(place)) for place in places]
        ids = [(volume.name, place.volume().volume_id) for volume, place in zip(volumes, found, strict=True)]
        members = [Member(volume.name, place) for volume, place in zip(volumes, found, strict=True)]
        samples = []
        with Coordinator("bench", members, ids) as coordinator:
            for cut in range(cuts):
                for place in places:
                    (place / "file").write_bytes(b"%d" % cut)
                samples.append(coordinator.cut(None).pause_s * 1e3)
        return {f"{MEMBERS} volumes": percentiles(samples)}
    finally:
        for volume, place in zip(volumes, places, strict=True):
            subprocess.run([*SNAPFS, "umount", str(place)], check=False, capture_output=True)
            shutil.rmtree(volume, ignore_errors=True)
            with contextlib.suppress(OSError):
                place.rmdir()


def drills(base: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Seconds of a drill from a mirror of this host: until the mount answered, until the application did (which reads
    4 MiB), until all of the state was here. States of 200 MB, and of 2 GB unless it is to be quick."""
    results = {}
    for label, size in (("200 MB", 200 * 10**6), *(() if quick else (("2 GB", 2 * 10**9),))):
        with mounted(base, "off") as place:
            files = 10
            for number in range(files):
                write_file(place / f"data-{number}", size // files, number)
            (place / "first").write_bytes(os.urandom(4 * MIB))
            snapfs("snapshot", str(place))
            with mirror(base, base / "volume") as (url, token):
                facts = json.loads(snapfs(
                    "drill", url, "--token-file", str(token), "--check", "cat first > /dev/null", "--timeout", "1h",
                    "--scratch", str(base), "--json",
                ))["results"][0]  # fmt: skip
        results[label] = {
            "mount_s": facts["mount_s"], "first_answer_s": facts["ready_s"], "whole_s": facts["whole_s"],
            "fetched_mib": facts["fetched_bytes"] / MIB,
        }  # fmt: skip
    return results


@contextlib.contextmanager
def mirror(base: Path, volume: Path) -> Iterator[tuple[str, Path]]:
    """A mirror that has all of the volume: its URL for it, and the file of a token."""
    root, token = base / "mirror", base / "token"
    root.mkdir()
    token.write_text(Tokens(str(root / "tokens.json")).create({"*": "admin"})[1])
    token.chmod(0o600)
    command = [*REPLICATOR, "serve", "--root", str(root), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().rstrip().rpartition(":")[2]
            url = f"http://127.0.0.1:{port}/bench"
            target = f'\n[[replication.target]]\nname = "bench"\nurl = "{url}"\ntoken_file = "{token}"\n'
            toml = volume / "volume.toml"
            toml.write_text(toml.read_text() + target)
            subprocess.run([*REPLICATOR, "push", "--once", "--new", str(volume)], check=True, capture_output=True)
            yield url, token
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(root)
            token.unlink()
