"""From a target's settings to the target: the URL's scheme says which kind it is."""

from __future__ import annotations

from replicator.targets.directory import DirectoryTarget
from replicator.targets.http import HttpTarget
from replicator.targets.objects import ObjectStoreTarget
from snapfs.access import MirrorAccess
from snapfs.config import TargetSettings
from snapfs.errors import UserError
from snapfs.store.bucket_client import open_bucket

AnyTarget = HttpTarget | DirectoryTarget | ObjectStoreTarget


def make_target(settings: TargetSettings) -> AnyTarget:
    """The target that these settings name. Raises UserError."""
    scheme, _, rest = settings.url.partition("://")
    if scheme in ("http", "https"):
        return HttpTarget(settings.url, _access(settings))
    if scheme == "file":
        if not rest.startswith("/"):
            raise UserError(f"{settings.url}: write file:///FOLDER, with the whole path")
        return DirectoryTarget(rest)
    return ObjectStoreTarget(open_bucket(settings.url, settings.options, settings.token_file))


def _access(settings: TargetSettings) -> MirrorAccess:
    return MirrorAccess(
        settings.token_file or None, settings.ca or None, settings.certificate or None, settings.key or None
    )
