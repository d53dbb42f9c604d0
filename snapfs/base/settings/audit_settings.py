"""The settings of the audit trail: signed checkpoints."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from snapfs.base.settings.units import Seconds


class AuditSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the log is made provable, beside its chain of hashes and what targets witness."""

    sign_key: Annotated[
        str,
        Meta(
            description="A file with a private Ed25519 key in PEM, to sign checkpoints of the log with. Empty, because "
            "a key takes somebody to keep it; each target witnesses the log without one."
        ),
    ] = ""
    every: Annotated[
        Seconds,
        Meta(description="Time from one checkpoint to the next, at most: one is made with the next snapshot after it."),
    ] = Seconds(3600)
