"""From a target's settings to the target: the URL's scheme says which kind it is."""

from __future__ import annotations

import os
from typing import Final

import obstore.store
from obstore.exceptions import BaseError

from replicator.targets.directory import DirectoryTarget
from replicator.targets.http import Access, HttpTarget
from replicator.targets.objects import ObjectStoreTarget
from snapfs.config import TargetSettings
from snapfs.errors import UserError

_RETRY: Final = {"max_retries": 2}
"""Of a single request, within obstore; the feeder does the rest, with a state that people can see."""


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
    return ObjectStoreTarget(_object_store(settings))


def _access(settings: TargetSettings) -> Access:
    return Access(
        settings.token_file or None, settings.ca or None, settings.certificate or None, settings.key or None
    )


def _object_store(settings: TargetSettings) -> obstore.store.ObjectStore:
    options = dict(settings.options)
    if settings.token_file:
        options |= _credentials(settings)
    allow_http = options.pop("allow_http", "false") == "true"
    if settings.url.startswith("s3://"):
        options.setdefault("checksum_algorithm", "SHA256")  # so that the store verifies what arrives
    client = {"allow_http": allow_http, "timeout": "120s", "connect_timeout": "10s"}
    try:
        store: obstore.store.ObjectStore = obstore.store.from_url(  # type: ignore[call-overload]
            settings.url, config=options, client_options=client, retry_config=_RETRY
        )
        return store
    except (BaseError, ValueError) as error:
        raise UserError(f"{settings.url}: {' '.join(str(error).split())[:300]}") from None


def _credentials(settings: TargetSettings) -> dict[str, str]:
    lines = (Access(os.path.expanduser(settings.token_file)).token()).splitlines()
    if len(lines) != 2:
        raise UserError(f"{settings.token_file}: write the key's id on one line and its secret on the next")
    names = {"s3": ("access_key_id", "secret_access_key"), "az": ("account_name", "account_key")}
    found = names.get(settings.url.partition("://")[0])
    if found is None:
        raise UserError(f"{settings.url}: give its credentials by the environment, or by `options`")
    return dict(zip(found, lines, strict=True))
