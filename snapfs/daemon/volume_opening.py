"""Opening a volume whose lock is held: its repository and its live tree, recovered.

Invariants:
1. A live tree is made anew only in a volume that never had one: a namespace that is missing where there are snapshots
   or files is damage.
2. A disk without free space is no obstacle as long as the space that is reserved for recovery lasts.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from snapfs.base import process_limits
from snapfs.base.blocks import Disk
from snapfs.base.boot import boot_id
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.json_file import JsonFile
from snapfs.base.settings.volume_settings import LiveSettings
from snapfs.base.volumes.volume import Volume
from snapfs.live.backing.host_life import HostLife
from snapfs.live.content import datapath
from snapfs.live.content.datapath import CHANGES_NAMES
from snapfs.live.format_versions import refuse_later
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.recovery.recover_tree import has_lost_names
from snapfs.live.tree import LiveTree
from snapfs.live.writer.kernel_clock import kernel_time_ns
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource
from snapfs.transfer.consistency import hook_note
from snapfs.transfer.lazy.origin_file import ORIGIN_FILE
from snapfs.transfer.seal import seal_attempts, snapshot_failures
from snapfs.transfer.seal.seal_attempts import fitting_cache, memory_limit_bytes
from snapfs.transfer.seal.seal_notes import refuse_later_notes
from snapfs.transfer.seal.snapshot_failures import FAILED

if TYPE_CHECKING:
    from snapfs.transfer.lazy.attachment import Attachment

_NOTES: Final[dict[str, JsonFile[Any]]] = {
    seal_attempts.NAME: seal_attempts.NOTE, snapshot_failures.NAME: FAILED, hook_note.NAME: hook_note.BEGUN,
}  # fmt: skip


def open_repository(volume: Volume, disk: Disk) -> Repository:
    """The store of the volume, which is created if it is empty. The caller closes it."""
    volume.check_folders()
    identity = StoreIdentity(volume.volume_id, volume.seed)
    if not os.listdir(volume.store_dir):
        Repository.create(volume.store_dir, identity, disk).close()
    shares = process_limits.fit(volume.config.live.max_open_files)
    cache_bytes = fitting_cache(int(volume.config.seal.cache), memory_limit_bytes())
    return Repository.open(volume.store_dir, identity, disk, cache_bytes=cache_bytes, max_open_segments=shares.segments)


def open_attachment(volume: Volume, repository: Repository, disk: Disk) -> Attachment | None:
    """The connection to the sources of a volume that is not complete; None for one that is. Raises as `Attachment`."""
    if not os.path.lexists(os.path.join(volume.path, ORIGIN_FILE)):
        return None
    from snapfs.transfer.lazy.attachment import Attachment  # brings HTTP along

    return Attachment.of(volume, repository, disk)


def open_tree(
    volume: Volume, disk: Disk, repository: Repository, attachment: Attachment | None = None, *, adopting: bool = False
) -> LiveTree:
    """The live tree, with its namespace, which it closes. `attachment`: where the snapshots of the volume still are.

    `adopting`: see LiveTree. CorruptionError if its namespace is lost; OSError, also if the disk has no space left.
    """
    Namespace.give_room(volume.namespace_path, if_needed=True)
    while True:
        try:
            _check_names(volume, repository)
            return _open_tree(volume, disk, repository, attachment, adopting)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not Namespace.give_room(volume.namespace_path):
                raise


def _check_names(volume: Volume, repository: Repository) -> None:
    """Raise if the live tree is not what this version can go on with."""
    if has_lost_names(volume.live_dir, has_past=bool(repository.catalog)):
        if not os.listdir(volume.live_dir):
            raise UserError(
                f"{volume.path} is a history without a live tree: `snapfs mount --from {volume.path} NEW_VOLUME "
                "MOUNTPOINT` makes a volume of it"
            )
        raise CorruptionError("the namespace", volume.namespace_path, "it is missing")
    refuse_later(volume.live_dir)
    refuse_later_notes(volume.live_dir, _NOTES)


def _open_tree(
    volume: Volume, disk: Disk, repository: Repository, attachment: Attachment | None, adopting: bool
) -> LiveTree:
    settings = volume.config.live
    data_path = "" if settings.data_path == "auto" else settings.data_path
    _check_limit(settings, data_path)
    shares = process_limits.fit(settings.max_open_files)
    with ExitStack() as opened:
        host_life = HostLife(volume.live_dir, disk, boot_id(), adopting=adopting)
        opened.callback(host_life.close)
        namespace = Namespace(volume.namespace_path, disk, kernel_time_ns, host_life.token, verify=not adopting)
        opened.callback(namespace.close)
        tree = LiveTree(
            volume.live_dir, namespace, disk,
            boot_id=host_life.token, host_life=host_life, max_open_files=shares.backing, max_readers=shares.readers,
            max_dirty_files=settings.max_dirty_files, source=attachment.source() if attachment else _source(repository),
            clock=kernel_time_ns, adopting=adopting,
            data_path=data_path,
            native_changes=settings.native_names and CHANGES_NAMES,
        )  # fmt: skip
        opened.pop_all()
    try:
        tree.limit_size(settings.limit)
    except BaseException:
        tree.close(clean=False)
        raise
    return tree


def _check_limit(settings: LiveSettings, data_path: str) -> None:
    """UserError if there is a limit, and nobody to hold it."""
    if settings.limit and datapath.choose(data_path).core is None:
        raise UserError(
            "live.limit needs the native data path: set live.data_path to auto or native, and install snapfs with "
            "its extensions"
        )


def _source(repository: Repository) -> StoreSource | None:
    """Where the bytes of absent files come from; the page cache of any snapshot will do for reading them."""
    record = repository.latest_good()
    return StoreSource(repository, SnapshotTree(repository, record.root)) if record else None
