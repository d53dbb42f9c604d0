"""One site of targets: a mirror, a folder and an object store, each for a plain volume and for an encrypted one."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server, start_obstore

KINDS = [f"{kind}{sealed}" for kind in ("mirror", "folder", "bucket") for sealed in ("", "-encrypted")]


@dataclass
class Place:
    """A target, and what it takes to read it."""

    url: str
    options: list[str]
    mirror: MirrorProcess


@dataclass
class Site:
    """One volume, pushed to three targets, and another one, encrypted there, to three more."""

    folder: Path
    mirror: MirrorProcess
    places: dict[str, Place] = field(default_factory=dict)


@contextlib.contextmanager
def target_site(folder: Path, fill: Callable[[Path, str, list[str]], None]) -> Iterator[Site]:
    """The site, in `folder`, with a history in each target.

    `fill(folder, sealed, key_options)` makes and pushes the history: `sealed` is "" or "-encrypted", and the settings
    that name the targets are in `settings{sealed}`.
    """
    start_obstore()
    mirror = MirrorProcess(folder / "mirror")
    mirror.start()
    (folder / "token").write_text(mirror.admin)
    key = folder / "key"
    key.write_text("a passphrase of the owner, long enough")
    key.chmod(0o600)
    made = Site(folder, mirror)
    try:
        with s3_server() as endpoint:
            for sealed in ("", "-encrypted"):
                add_targets(made, endpoint, sealed, key)
                fill(folder, sealed, ["--key-file", str(key)] if sealed else [])
            yield made
    finally:
        mirror.stop()


def add_targets(site: Site, endpoint: str, sealed: str, key: Path) -> None:
    """Name the three targets in the settings, and their places in `site`."""
    folder, store = site.folder, {**OPTIONS, "endpoint": endpoint}
    urls = {
        "mirror": f"http://127.0.0.1:{site.mirror.port}/pg{sealed}",
        "folder": f"file://{folder}/copy{sealed}",
        "bucket": f"s3://{BUCKET}/pg{sealed}",
    }
    reach = {
        "mirror": ["--token-file", str(folder / "token")],
        "folder": [],
        "bucket": [word for name, value in store.items() for word in ("--store-option", f"{name}={value}")],
    }
    lines = [f'\n[replication.encryption]\nkey_file = "{key}"\n'] if sealed else []
    for kind, url in urls.items():
        inline = ", ".join(f'{name} = "{value}"' for name, value in store.items())
        more = {"mirror": f'token_file = "{folder}/token"', "bucket": f"options = {{{inline}}}"}.get(kind, "")
        lines.append(f'\n[[replication.target]]\nname = "{kind}"\nurl = "{url}"\n{more}\n')
        site.places[f"{kind}{sealed}"] = Place(
            url, [*reach[kind], *(["--key-file", str(key)] if sealed else [])], site.mirror
        )
    (folder / f"settings{sealed}").write_text("".join(lines))


def generation_at(site: Site) -> list[tuple[int, str]]:
    """Generation and writer of each volume at the mirror."""
    done = subprocess.run([*REPLICATOR, "list", "--json", site.mirror.root], capture_output=True, check=True)
    return [(each["generation"], each["holder"]) for each in json.loads(done.stdout)["volumes"]]
