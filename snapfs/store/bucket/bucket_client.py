"""The way into an object store: from its URL, options and credentials to obstore's client, and its failures in words.

Credentials come from a file, from `options`, or, as usual for each kind of store, from the environment. obstore is
imported when a store is opened, and not before: who has none of them does not wait for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from snapfs.base.errors import UserError
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.protocol.refusals import Refusal, refuse

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

_FILE_BYTES: Final = 8192
_WAITS: Final = {"timeout": "120s", "connect_timeout": "10s"}
_NAMES: Final = {"s3": ("access_key_id", "secret_access_key"), "az": ("account_name", "account_key")}
_PERFORMING: Final = re.compile(r"Error performing (\S+) (\S+) in \S+(?:, after .*?retry_timeout: \S+)?\s*-\s*")
_CODE: Final = re.compile(r"<Code>([^<]*)</Code>(?:.*?<Message>([^<]*)</Message>)?")


def open_bucket(
    url: str, options: Mapping[str, str], token_file: str = "", *, waits: Mapping[str, str] = _WAITS,
    retry_s: int | None = None, or_token: bool = False,
) -> ObjectStore:  # fmt: skip
    """The client of a store; no request is sent yet. UserError.

    `waits`: obstore's time limits; `retry_s`: for how long it tries a request again by itself; `or_token`: the file may
    be for a mirror, and holds one word then.
    """
    import obstore.store
    from obstore.exceptions import BaseError

    config = {**options, **(_credentials(url, token_file, or_token) if token_file else {})}
    client: dict[str, object] = dict(waits)
    if "allow_http" in config:
        client["allow_http"] = config.pop("allow_http") == "true"
    if url.startswith("s3://"):
        config.setdefault("checksum_algorithm", "SHA256")  # so that the store verifies what arrives
    retry: dict[str, object] = {"max_retries": 2}
    if retry_s is not None:
        retry["retry_timeout"] = timedelta(seconds=retry_s)
    try:
        store: ObjectStore = obstore.store.from_url(  # type: ignore[call-overload]
            url, config=config, client_options=client, retry_config=retry
        )
        return store
    except (BaseError, ValueError) as error:
        raise UserError(f"{url}: {words(error)}") from None


def _credentials(url: str, token_file: str, or_token: bool) -> dict[str, str]:
    try:
        with open(os.path.expanduser(token_file), encoding="utf-8") as file:
            lines = file.read(_FILE_BYTES).split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{token_file}: the credentials cannot be read: {error}; name a file that you may read"
        ) from None
    if or_token and len(lines) == 1:
        return {}
    if len(lines) != 2:
        raise UserError(f"{token_file}: write the key's id on one line and its secret on the next")
    names = _NAMES.get(url.partition("://")[0])
    if names is None:
        raise UserError(f"{url}: give its credentials by the environment, or by `options`")
    return dict(zip(names, lines, strict=True))


def version_of(e_tag: str | None, version: str | None) -> UpdateVersion:
    """The condition of a conditional put: only what the store has sent."""
    found: UpdateVersion = {}
    if e_tag is not None:
        found["e_tag"] = e_tag
    if version is not None:
        found["version"] = version
    return found


def failure(error: Exception) -> Exception:
    """An obstore failure as targets and sources raise it: RefusedError if trying again is of no use, else OSError."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return refuse(Refusal.FORBIDDEN, f"the object store refuses these credentials: {words(error)}")
    if "169.254.169.254" in str(error) or "metadata.google.internal" in str(error):
        return refuse(Refusal.FORBIDDEN, "there are no credentials: name a file with them (--token-file, token_file)")
    return ConnectionError(f"object store: {words(error)}")


def no_head(error: Exception) -> Exception:
    """Why there is no history: the store answered that there is no head."""
    if "NoSuchBucket" in str(error):
        return refuse(Refusal.NOT_FOUND, "there is no such bucket")
    return refuse(Refusal.NOT_FOUND, f"there is no history there: no {HEAD} below this prefix")


def words(error: Exception) -> str:
    """What went wrong, in one line, and the same line when it goes wrong again."""
    text = " ".join(str(error).split())
    summary, _, debug = text.partition(" Debug source:")
    performing, code = _PERFORMING.search(summary), _CODE.search(summary)
    rest = summary[performing.end() :] if performing else summary
    if code is not None:
        rest = ": ".join(filter(None, code.groups()))
    elif "builder error" in rest and " http://" in summary:
        rest = "it is not encrypted: https:// is wanted there, or the option allow_http=true"
    elif "kind: Connect" in debug:
        rest = "it cannot be reached"
    elif "kind: Timeout" in debug:
        rest = "no answer in time"
    return f"{performing[1]} {performing[2]}: {rest}"[:300] if performing else rest[:300]
