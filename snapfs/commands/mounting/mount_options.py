"""The values of ``-o``, as mount(8) and fstab(5) write them: settings, restrictions, and words without effect here."""

from __future__ import annotations

from dataclasses import dataclass, field

from snapfs.base.errors import UserError
from snapfs.base.logs import log_output

_GENERIC = (
    "defaults auto noauto user users nouser owner group nofail _netdev exec suid dev async noatime "
    "nodiratime norelatime nostrictatime nolazytime default_permissions loud silent nomand"
)
_IGNORED = frozenset(_GENERIC.split())
"""Words of mount(8) and fstab(5) without an effect here, or whose effect always holds."""


@dataclass(slots=True)
class RequestedOptions:
    """The values of ``-o``: settings by name, and restrictions for the kernel."""

    settings: dict[str, str] = field(default_factory=dict)
    nonempty: bool = False
    restrictions: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)
    log_format: str = "auto"
    create: bool | None = None
    """Whether a volume may be made; None: as --existing decides."""

    def give(self, key: str, value: str) -> None:
        """Note KEY=VALUE. UserError for what cannot be."""
        if key != "log_format":
            self.settings[key] = value
        elif value in log_output.FORMATS:
            self.log_format = value
        else:
            raise UserError(f"log_format={value}: write one of {', '.join(log_output.FORMATS)}")


def parse_options(texts: tuple[str, ...]) -> RequestedOptions:
    """Read the values of ``-o``, as mount(8) and fstab(5) write them. UserError for what is not known."""
    wanted = RequestedOptions()
    for word in (word for text in texts for word in text.split(",") if word):
        key, equals, value = word.partition("=")
        if (
            word in _IGNORED
            or key.startswith(("x-", "X-"))
            or key in {"comment", "uhelper", "helper", "fsname", "subtype"}
        ):
            continue
        if word in {"allow_other", "noallow_other"}:
            wanted.settings["mount.allow_other"] = "true" if word == "allow_other" else "false"
        elif word in {"nodev", "nosuid", "noexec", "ro"}:
            wanted.restrictions.add(word)
        elif word == "rw":
            wanted.restrictions.discard("ro")
        elif word in {"atime", "diratime", "relatime", "lazytime"}:
            wanted.remarks.append(f"{word}: access times are not kept, the mount is noatime")
        elif word in {"strictatime", "mand"}:
            raise UserError(f"{word} cannot be had: leave it out")
        elif word == "nonempty":
            wanted.nonempty = True
        elif word in {"create", "existing"}:
            wanted.create = word == "create"
        elif equals and ("." in key or key == "log_format"):
            wanted.give(key, value)
        else:
            raise UserError(f"unknown mount option {word}: settings are named like snapshots.every=10s")
    return wanted
