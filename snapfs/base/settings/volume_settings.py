"""The settings of one mounted volume: when it makes snapshots, its objectives, how it seals, serves, shows, hydrates.

Each field is the home of its name, type, unit, bounds, default and reason; nothing here acts on them. The structs are
frozen: a changed setting takes effect at the next mount.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from snapfs.base.settings.units import Bytes, Seconds


class SnapshotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a snapshot is made without a request."""

    every: Annotated[
        Seconds, Meta(description="Time from one snapshot to the next. Off, because history takes space: you choose.")
    ] = Seconds(0)
    dirty: Annotated[
        Bytes,
        Meta(
            description="A snapshot is due when so much was written since the last cut (what is written twice counts "
            "twice). 0B: off. It bounds what one seal has to read and a target has to take at a time."
        ),
    ] = Bytes(0)
    lull: Annotated[
        Seconds,
        Meta(
            description="A snapshot is due when something changed and nothing was written for so long: applications "
            "rest between their batches, and a cut there costs them least. Give `at_most` as well for one that never "
            "rests."
        ),
    ] = Seconds(0)
    calendar: Annotated[
        tuple[str, ...],
        Meta(
            description='Times in the syntax of cron at which a snapshot is due, such as ["0 3 * * *", "*/15 8-18 * * '
            '1-5"], in the time zone of the host (TZ, else /etc/localtime). One that passed while the volume was not '
            "mounted is made up for at the mount, once."
        ),
    ] = ()
    at_least: Annotated[
        Seconds,
        Meta(
            description="Least time from one cut to the next, whichever rule asks for it. Only a lack of memory and "
            "replication.mode bounded go before it. Off: rules decide alone."
        ),
    ] = Seconds(0)
    at_most: Annotated[
        Seconds,
        Meta(
            description="Most time that a change waits for its cut, whatever the rules say. Off: with `lull` or "
            "`dirty` alone an application may keep it from ever being made; you choose for how long."
        ),
    ] = Seconds(0)
    flush: Annotated[
        bool,
        Meta(
            description="Write the kernel's dirty pages out before the cut, so that a snapshot has every write that "
            "returned before it, and not only those that were fsynced. Off spares the burst of writing."
        ),
    ] = True
    skip_unchanged: Annotated[
        bool, Meta(description="Make none when nothing changed: a history of equal snapshots is of no use.")
    ] = True
    on_unmount: Annotated[
        bool,
        Meta(
            description="Make one at each clean unmount. Off: the live tree is durable, and an unmount should be quick."
        ),
    ] = False
    keep: Annotated[
        int,
        Meta(
            ge=0,
            description="How many of the snapshots made by rules (`every`, `lull`, ...) to keep; the oldest is "
            "dropped. 0 keeps all. Those with a name are always kept: only you know what they are for.",
        ),
    ] = 0
    exclude: Annotated[
        tuple[str, ...],
        Meta(
            description='Patterns, as in a gitignore file, of paths that are in no snapshot: ["cache/", "*.tmp"]. They '
            "are as durable as the rest on this host, and are gone on the next. Each snapshot records the patterns it "
            "was made with; what is no longer excluded is in the next snapshot as a whole. Empty: only you know what "
            "can be done without."
        ),
    ] = ()


class ObjectiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner wants to hold, from which snapfs finds out the rest."""

    rpo: Annotated[
        Seconds,
        Meta(
            description="Most work, as time, that may be lost with this host: the age of the newest cut that "
            "`replication.copies` targets have, while something changed since. snapfs then picks the times of the "
            "cuts itself, from what is written, how long seals take and how far the targets are. Off, because only "
            "you know what your work is worth."
        ),
    ] = Seconds(0)
    rto: Annotated[
        Seconds,
        Meta(
            description="Most time until the state is usable again elsewhere. It is shown, and what measures a "
            "recovery is held against it; nothing else follows from it. Off: no recovery is too slow."
        ),
    ] = Seconds(0)


class HookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Commands around a cut, for applications that can be brought to a better state than that after a crash."""

    before: Annotated[
        tuple[str, ...],
        Meta(
            description="Command and arguments, run before the cut, as the daemon's user, in a process group of its "
            'own: `["snapfs", "hook", "postgres"]`. Not run for a cut that may not wait (of memory pressure, a '
            "rollback, a bound on replication). What it leaves running in its group holds the application until "
            "after the cut, and is ended then."
        ),
    ] = ()
    after: Annotated[
        tuple[str, ...],
        Meta(
            description="Command and arguments, run right after the cut, always once `before` was begun: also when the "
            "cut failed, and by the next daemon if this one died in between."
        ),
    ] = ()
    timeout: Annotated[
        Seconds,
        Meta(description="Each of the two is killed with its group after so long, and has failed then."),
    ] = Seconds(10)
    on_failure: Annotated[
        Literal["mark", "fail"],
        Meta(
            description="What a failing `before` does: the snapshot is made and marked as crash-consistent, with the "
            "reason (mark), or it fails (fail). `mark`, because an old snapshot is worse than one that recovers."
        ),
    ] = "mark"


class SealSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a cut is turned into a snapshot in the background."""

    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="Threads that compress. 0: a quarter of the cores, from 1 to 4, as the application goes first. "
            "On four cores that were busy with other work one sealed 350 MB/s (median of four runs), and two to four "
            "no more (280 to 300), while the median request took 0.15 ms with one and 0.3 ms with three or four.",
        ),
    ] = 0
    window: Annotated[
        Bytes,
        Meta(description="Most bytes on their way from the live tree to the store: the bound of the sealer's memory."),
    ] = Bytes(32 << 20)
    cache: Annotated[
        Bytes,
        Meta(
            description="Recent objects kept uncompressed. A base at hand makes a patch three times cheaper than one "
            "that must be read back first."
        ),
    ] = Bytes(64 << 20)
    budget: Annotated[
        float,
        Meta(
            ge=0.001,
            le=1,
            description="Share of the time that may go into sealing where objectives.rpo picks the times of the cuts: "
            "with one thread at most that share of a core. Above it cuts become rarer, until the rpo would break: that "
            "goes first. 0.1, as nine tenths of a core are then left to the application where it has only one.",
        ),
    ] = 0.1


class LiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live tree."""

    limit: Annotated[
        Bytes,
        Meta(
            description="What the sizes of all files may add up to, holes included; snapshots do not count. df shows "
            "what is left; beyond it writes and creations fail with EDQUOT. 0B: no limit but the host's disk, which "
            "you may have given to this volume alone."
        ),
    ] = Bytes(0)

    max_open_files: Annotated[
        int,
        Meta(
            ge=16,
            description="Backing files held open at a time; fewer where the limit of descriptors (ulimit -n) requires "
            "it. 512 leaves half of the common limit of 1,024 to the rest.",
        ),
    ] = 512
    max_dirty_files: Annotated[
        int,
        Meta(ge=1, description="With more changed files than this a snapshot is made, so that memory stays bounded."),
    ] = 200_000
    data_path: Annotated[
        Literal["auto", "native", "python"],
        Meta(
            description="Who serves the bytes of files: C threads (native) or the daemon's Python, which is slower and "
            "the same otherwise. auto: native where the extensions were built; native: not without them."
        ),
    ] = "auto"
    native_names: Annotated[
        bool,
        Meta(
            description="Let the C threads change names as well (create, link, remove, rename) where they serve bytes. "
            "false: the daemon's Python does, several times slower and the same otherwise."
        ),
    ] = True
    wal_sync_interval: Annotated[
        Seconds,
        Meta(description="Longest time until a change of names or attributes without an fsync is on the disk."),
    ] = Seconds(1)


class MountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the volume is shown."""

    allow_other: Annotated[
        bool | Literal["auto"],
        Meta(
            description="Let other users than the one who mounts in (as their permissions allow). auto: yes for root, "
            "so that a service's user can use the mount; others need user_allow_other in /etc/fuse.conf for it."
        ),
    ] = "auto"
    priority: Annotated[
        Literal["realtime", "usual"],
        Meta(
            description="On a loaded host, whether the threads that answer reads, writes and fsyncs wait for a "
            "processor behind everybody else (usual), or run first, in the lowest real-time priority, where that is "
            "allowed (root; others by `ulimit -r`). An application waits while they run. The status shows what "
            "came of it."
        ),
    ] = "realtime"


class HydrationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a volume that was mounted from elsewhere brings in what it does not have yet."""

    background: Annotated[
        bool,
        Meta(
            description="Bring everything in behind the application's back, so that the source is needed no more. Off: "
            "only what is requested; `resume` on the control file begins it."
        ),
    ] = True
    rate: Annotated[
        Bytes,
        Meta(
            description="Most bytes a second that are brought in unasked. 0B: as many as there is room for beside the "
            "application, which goes first in any case."
        ),
    ] = Bytes(0)
    wait: Annotated[
        Seconds,
        Meta(
            description="How long a read waits for bytes that no source can deliver, before it fails with EIO. 30s "
            "outlasts a restart of a mirror; an application that hangs for longer is worse off than one that fails."
        ),
    ] = Seconds(30)
