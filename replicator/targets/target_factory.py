"""From a target's settings to the target: the URL's scheme selects the kind."""

from __future__ import annotations

from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.settings.replication_settings import TargetSettings, expanded
from snapfs.store.bucket.bucket_client import open_bucket
from snapfs.store.protocol.target_url import folder_of

AnyTarget = HttpTarget | DirectoryTarget | ObjectStoreTarget


def make_target(settings: TargetSettings) -> AnyTarget:
    """The target that these settings name. Raises UserError."""
    settings = expanded(settings)
    scheme, _, _ = settings.url.partition("://")
    if scheme in ("http", "https"):
        return HttpTarget(settings.url, _access(settings))
    if scheme == "file":
        return DirectoryTarget(folder_of(settings.url))
    return ObjectStoreTarget(open_bucket(settings.url, settings.options, settings.token_file))


def _access(settings: TargetSettings) -> MirrorAccess:
    return MirrorAccess(
        settings.token_file or None, settings.ca or None, settings.certificate or None, settings.key or None
    )
