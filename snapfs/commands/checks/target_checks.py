"""Checks of a target, by its URL: a mirror, a folder, an object store; and of all that a volume's settings name.

Invariants:
1. Nothing is changed, but for two short-lived objects by which an object store shows what it refuses.
2. A target that does not answer is a finding, after a bounded time; the others are checked still.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, SnapfsError, UserError, VersionError
from snapfs.base.settings.replication_settings import expanded, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.commands.checks.filesystem_checks import space
from snapfs.commands.checks.findings import Finding, Level
from snapfs.commands.checks.mirror_checks import clock, mirror
from snapfs.store.bucket.bucket_layout import SCHEMES
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.protocol.target_url import folder_of
from snapfs.transfer.sources.source_access import Access

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PROBE_S = 20


def target(url: str, access: Access) -> Iterator[Finding]:
    """All about the target at `url`. Raises UserError for a URL or an access that cannot be."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        yield from mirror(url, access)
    elif scheme == "file":
        yield from folder(folder_of(url))
    elif scheme in SCHEMES:
        yield from bucket(url, access)
    else:
        raise UserError(f"{url}: a target is https://MIRROR:PORT/VOLUME, file:///FOLDER or s3://BUCKET/PREFIX (gs, az)")


def targets_of(volume_path: str) -> Iterator[Finding]:
    """The same of all targets that the volume's settings name, each finding with the target's name."""
    settings = Volume.open(volume_path, Disk()).config.replication
    if not settings.target:
        yield Finding("targets", Level.NOTE, "the settings name none: this host's disk has the only copy")
    for each in settings.target:
        name = target_name(each)
        try:
            for finding in target(expanded(each).url, Access.of(each, settings.encryption)):
                yield replace(finding, what=f"{name}: {finding.what}")
        except (OSError, SnapfsError) as error:
            yield Finding(f"{name}: target", Level.BAD, " ".join(str(error).split()))


def folder(path: str) -> Iterator[Finding]:
    """A folder that is a target."""
    if not os.path.isdir(path):
        words = f"{path} is not there: is its disk mounted? If it is new, `snapfs-replicator target init` says so"
        yield Finding("target", Level.BAD, words)
        return
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding("target", Level.BAD, f"{path} cannot be written: push as its owner or root")
        return
    if not Volume.exists(path):
        words = f"{path} has no history yet" if not os.listdir(path) else f"{path} holds something else than a volume"
        level = Level.NOTE if not os.listdir(path) else Level.BAD
        yield Finding("target", level, f"{words}: name an empty folder, and the first push makes it one")
        return
    volume = Volume.open(path, Disk())
    yield Finding("target", Level.OK, f"{path} is of volume {volume.volume_id}")
    yield from space(path)


def bucket(url: str, access: Access) -> Iterator[Finding]:
    """An object store: whether it holds to conditions, what the key may do, its clock, the format of what is there."""
    from snapfs.store.bucket import bucket_client, conditional_puts

    store = bucket_client.open_bucket(
        url, access.options, access.token_file or "", waits={"timeout": "20s", "connect_timeout": "5s"},
        retry_s=_PROBE_S,
    )  # fmt: skip
    before_s = time.time()
    try:
        there_s = conditional_puts.prove(store)
    except RefusedError as error:
        yield from _refused(url, error)
        if error.refusal is not Refusal.FORBIDDEN:
            return
    except OSError as error:
        hint = "are endpoint, region and bucket right, and is the network there?"
        yield Finding("target", Level.BAD, f"{url}: {error}: {hint}")
        return
    else:
        yield Finding("target", Level.OK, f"{url} refuses puts whose condition does not hold; the key may write")
        yield clock(before_s, time.time(), there_s, 1.0)
    yield _history(url, store)


def _refused(url: str, error: RefusedError) -> Iterator[Finding]:
    if error.refusal is Refusal.FORBIDDEN:
        hint = "to push, the key needs to read, write, list and delete below the prefix"
        yield Finding("token", Level.BAD, f"{url}: {error}: {hint}")
    elif error.refusal is Refusal.NOT_FOUND:
        yield Finding("target", Level.BAD, f"{url}: {error}: make it, or correct the URL")
    else:
        yield Finding("target", Level.BAD, f"{url}: {error}")


def _history(url: str, store: ObjectStore) -> Finding:
    from snapfs.transfer.sources.bucket_source import BucketSource

    with contextlib.closing(BucketSource(url, store)) as source:
        try:
            head = source.head.read().head
        except RefusedError as error:
            if error.refusal is Refusal.NOT_FOUND:
                return Finding("volume", Level.NOTE, "there is no history yet: the first push makes it")
            return Finding("volume", Level.BAD, f"{error}: to read takes the right to get and list below the prefix")
        except VersionError as error:
            return Finding("format", Level.BAD, f"{error}: use a newer snapfs", newer=True)
        except CorruptionError as error:
            return Finding(
                error.what, Level.BAD, f"{error}: push to another prefix, and mount from another target", damage=True
            )
        except OSError as error:
            return Finding("volume", Level.BAD, f"{error}: try again when the store answers")
    return Finding("volume", Level.OK, f"volume {head.volume}, generation {head.generation}, writer {head.writer_id}")
