"""What to mount where, and how the kernel is to show it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.fuse.kernel.fuse_mount import MountOptions


@dataclass(slots=True)
class MountRequest:
    """`allow_other` None: as in the volume's settings. `refuse_changes`: whatever would change a file, a name or an
    attribute is EROFS. `restrictions`: any of nodev, nosuid, noexec, ro, beyond those that hold for the user anyway.
    `first_at`: where the mount is made, if its maker moves it to `mountpoint` afterwards.
    """

    volume: Volume
    mountpoint: str
    allow_other: bool | None = None
    nonempty: bool = False
    restrictions: frozenset[str] = frozenset()
    refuse_changes: bool = False
    first_at: str = ""
    disk: Disk = field(default_factory=Disk)

    def options(self) -> MountOptions:
        """The options of the mount, as the request and the user's rights allow them."""
        wanted = self.volume.config.mount.allow_other if self.allow_other is None else self.allow_other
        usual = MountOptions.usual(self.volume.path, allow_other=None if wanted == "auto" else bool(wanted))
        return replace(
            usual,
            dev=usual.dev and "nodev" not in self.restrictions,
            suid=usual.suid and "nosuid" not in self.restrictions,
            noexec="noexec" in self.restrictions,
            ro="ro" in self.restrictions,
        )
