"""Checks that an object store refuses what it must: puts on condition, on which the head of a volume rests.

Some servers that speak S3 ignore If-None-Match and If-Match: two writers then replace each other's head, and snapshots
that were acknowledged are lost silently. So a writer that is about to replace a head tests first, with an object of a
name of its own: made once, made again (must be refused), replaced in its version (must be done), replaced in the
version before (must be refused), and what was refused must not be there. It also gives the time by the store's
clock: when the object was last modified.

A store may refuse all that and still look first and write afterwards: two writers that come at the same time then both
win. So the object is replaced, and another one made, by CONTENDERS puts at the same time, of which at most one may be
done, and the content must be that one's. This is found out by chance only, in each test anew.

Invariant: nothing but these two objects is touched, and they are removed whatever the outcome.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from snapfs.store.bucket import bucket_client
from snapfs.store.bucket.bucket_layout import PROBE
from snapfs.store.protocol.refusals import Refusal, refuse

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

PROVE_SECONDS: Final = 3600.0
"""How long a test stays valid."""
CONTENDERS: Final = 2
"""Puts at the same time, of which one may be done."""
_NOT_DONE: Final = "<Code>NotImplemented</Code>"
_NO_WORK: Final = "so two writers could overwrite each other's snapshots. Use a store with conditional writes"


def prove(store: ObjectStore) -> float:
    """Raise RefusedError ("unsupported") for a store that cannot hold a volume's head, OSError if it does not answer.

    Returns the store's time, in seconds since the epoch. Blocks for the time of some ten requests; any thread.
    """
    from obstore import delete
    from obstore.exceptions import BaseError

    key = f"{PROBE}/{secrets.token_hex(12)}"
    keys = key, f"{key}-made"
    try:
        at_s, version = _ask(store, key)
        _contend(store, key, version, "If-Match")
        _contend(store, keys[1], "create", "If-None-Match")
        return at_s
    except BaseError as error:
        raise bucket_client.failure(error) from None
    finally:
        for each in keys:
            with contextlib.suppress(BaseError, OSError):
                delete(store, each)


def _ask(store: ObjectStore, key: str) -> tuple[float, UpdateVersion]:
    """One put after the other; the store's time, and the version of the object."""
    from obstore import get

    first = _put(store, key, b"first", "create")
    if first is None:  # an answer that was lost, and a put that was tried again
        raise ConnectionError("object store: no clear answer to a put on condition")
    if _put(store, key, b"made again", "create") is not None:
        raise refuse(Refusal.UNSUPPORTED, f"this object store ignores If-None-Match, {_NO_WORK}")
    if not first:
        raise refuse(Refusal.UNSUPPORTED, f"this object store sends no ETag, {_NO_WORK}")
    second = _put(store, key, b"second", first)
    if second is None:
        raise ConnectionError("object store: no clear answer to a put on condition")
    if _put(store, key, b"replaced late", first) is not None:
        raise refuse(Refusal.UNSUPPORTED, f"this object store ignores If-Match, {_NO_WORK}")
    answer = get(store, key)
    if bytes(answer.bytes()) != b"second":
        raise refuse(Refusal.UNSUPPORTED, f"this object store does what it reported as refused, {_NO_WORK}")
    return answer.meta["last_modified"].timestamp(), second


def _contend(store: ObjectStore, key: str, condition: UpdateVersion | str, header: str) -> None:
    """Puts at the same time, on one condition. None may be done: where an answer is lost, the winner is not known."""
    from obstore import get

    contents = [f"contender {number}".encode() for number in range(CONTENDERS)]
    start = threading.Barrier(CONTENDERS)

    def put(data: bytes) -> bool:
        start.wait()
        return _put(store, key, data, condition) is not None

    with ThreadPoolExecutor(CONTENDERS, "probe") as pool:
        won = [data for data, is_done in zip(contents, pool.map(put, contents), strict=True) if is_done]
    if len(won) > 1:
        why = f"this object store ignores {header} where two puts come at the same time"
        raise refuse(Refusal.UNSUPPORTED, f"{why}, {_NO_WORK}")
    if won and bytes(get(store, key).bytes()) != won[0]:
        raise refuse(Refusal.UNSUPPORTED, f"this object store does what it reported as refused, {_NO_WORK}")


def _put(store: ObjectStore, key: str, data: bytes, condition: UpdateVersion | str) -> UpdateVersion | None:
    """The version made; None if the store answers that the condition does not hold."""
    from obstore import put
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotSupportedError, PreconditionError

    try:
        made = put(store, key, data, mode=condition, use_multipart=False)  # type: ignore[arg-type]
    except (AlreadyExistsError, PreconditionError, FileExistsError):
        return None
    except (NotFoundError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error):
            raise refuse(Refusal.NOT_FOUND, "there is no such bucket") from None
        raise
    except (BaseError, NotImplementedError) as error:
        if isinstance(error, BaseError) and not isinstance(error, NotSupportedError) and _NOT_DONE not in str(error):
            raise
        raise refuse(Refusal.UNSUPPORTED, f"this object store knows no writes on condition, {_NO_WORK}") from None
    return bucket_client.version_of(made["e_tag"], made["version"])
