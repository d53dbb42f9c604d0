"""The settings of what proves that a history restores: drills, and the verification in the background."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from snapfs.base.settings.units import Bytes, Seconds


class DrillSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a snapshot is mounted in a scratch place and the application checked on it (`snapfs drill`)."""

    every: Annotated[
        Seconds,
        Meta(
            description="Time from one drill to the next; `snapfs-replicator agent` runs them. Off, because a drill "
            "takes the application's program, a processor and room for the state: you choose where."
        ),
    ] = Seconds(0)
    at: Annotated[
        tuple[str, ...],
        Meta(
            description='Times of drills in the syntax of cron, such as ["0 4 * * 0"], in the time zone of the host. '
            "One that passed while no agent ran is made up for, once."
        ),
    ] = ()
    check: Annotated[
        str,
        Meta(
            description="What says whether a snapshot recovers: postgres, postgres:quick (without pg_amcheck), sqlite, "
            "mariadb, redis, files, or a command for the shell, which runs in the mounted snapshot."
        ),
    ] = ""
    target: Annotated[
        str,
        Meta(
            description="The name of the target whose snapshot is drilled. Empty: the first target, or this host's own "
            "store where there is none. A target, because it is what is left when this host is gone."
        ),
    ] = ""
    timeout: Annotated[
        Seconds,
        Meta(
            description="Longest time of one drill, from its beginning until its check has passed and all of the state "
            "is there. Later has failed."
        ),
    ] = Seconds(600)


class VerifySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The verification of the store in the background, while the volume is mounted."""

    share: Annotated[
        str,
        Meta(
            pattern=r"^(off|\d{1,3}(\.\d+)?%)$",
            description='How much of the store is read back and checked a day: "10%" reads all of it in ten days. Bad '
            "objects are repaired from wherever a good copy is. Off, because it reads from the disk that the "
            "application uses: you choose how much.",
        ),
    ] = "off"
    rate: Annotated[
        Bytes, Meta(description="Most bytes a second that this reads, whatever the share asks for. 0B: no such bound.")
    ] = Bytes(8 << 20)

    @property
    def share_a_day(self) -> float:
        """As a fraction; 0: off."""
        return 0.0 if self.share == "off" else float(self.share.removesuffix("%")) / 100
