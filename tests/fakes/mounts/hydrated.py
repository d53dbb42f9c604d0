"""Whether a mount that fetches its state from elsewhere has all of it. Without pytest: tools/demo uses it too."""

from __future__ import annotations

from typing import Any, Protocol

from tests.fakes.patience import eventually


class HasStatus(Protocol):
    """A mount that can be asked for its status."""

    def status(self) -> dict[str, Any]: ...


def is_whole(status: dict[str, Any]) -> bool:
    """Whether everything is here. The status of a mount that began whole names no phase: there is nothing to fetch."""
    return bool(status["hydration"].get("phase", "done") == "done")


def wait_whole(mounted: HasStatus) -> None:
    """Return when nothing of `mounted` is needed from elsewhere any more."""
    eventually(lambda: is_whole(mounted.status()), "all of the state")
