"""What `configcheck` finds beyond the settings themselves: the variables and files that they name."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator

from snapfs.base.errors import SnapfsError
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.settings.config import Config
from snapfs.base.settings.control_settings import VERBS, ControlSettings, no_such_command
from snapfs.base.settings.replication_settings import EncryptionSettings, TargetSettings, expanded, target_name
from snapfs.store.bucket.bucket_layout import SCHEMES
from snapfs.store.protocol.target_url import folder_of, mirror_of


def problems(settings: Config) -> Iterator[str]:
    """What would keep the settings from working, one line each."""
    for target in settings.replication.target:
        for why in _of_target(target):
            yield f"target {target_name(target)}: {why}"
    for why in _of_encryption(settings.replication.encryption):
        yield f"encryption: {why}"
    for why in _of_control(settings.control):
        yield f"control.allow: {why}"
    if sign_key := settings.audit.sign_key:
        from snapfs.store.audit.checkpoints import private_key  # brings `cryptography` along

        for why in _failure(lambda: private_key(sign_key)):
            yield f"audit.sign_key: {why}"


def _of_control(control: ControlSettings) -> Iterator[str]:
    """A name that the host does not know allows nobody, which is not what somebody wrote it for."""
    yield from (no_such_command(verb) for verb in sorted(control.allow) if verb not in VERBS)
    for name in sorted({each for names in control.allow.values() for each in names}):
        plain = name.removeprefix("@")
        if not plain.isdecimal():
            try:
                grp.getgrnam(plain) if name.startswith("@") else pwd.getpwnam(plain)
            except KeyError:
                yield f"this host knows no {'group' if name.startswith('@') else 'user'} {plain!r}"


def _of_target(target: TargetSettings) -> Iterator[str]:
    try:
        target = expanded(target)
    except SnapfsError as error:
        yield str(error)
        return
    scheme, _, _ = target.url.partition("://")
    if scheme == "file":
        yield from _failure(lambda: folder_of(target.url))
        return
    if target.certificate == "" and target.key:
        yield f"key = {target.key} belongs to a certificate: name that as well"
    access = MirrorAccess(target.token_file or None, target.ca or None, target.certificate or None, target.key or None)
    tries: list[Callable[[], object]] = [_bucket(target)]
    if scheme not in SCHEMES:
        tries = [lambda: mirror_of(target.url), access.token]
    if scheme == "https":
        tries.append(access.tls)
    for attempt in tries:
        yield from _failure(attempt)


def _failure(attempt: Callable[[], object]) -> Iterator[str]:
    try:
        attempt()
    except SnapfsError as error:
        yield str(error)


def _bucket(target: TargetSettings) -> Callable[[], object]:
    def attempt() -> None:
        from snapfs.store.bucket.bucket_client import open_bucket

        open_bucket(target.url, target.options, target.token_file)

    return attempt


def _of_encryption(encryption: EncryptionSettings) -> Iterator[str]:
    if not encryption.is_on:
        return
    try:
        encryption = expanded(encryption)
        if encryption.key_file:
            from snapfs.store.crypto.keys import read_owners_key

            read_owners_key(encryption.key_file, None).key(b"of no volume")  # raises for what is no key
        elif not _program_is_there(encryption.key_command):
            yield f"key_command: {encryption.key_command.split()[0]} is not there, or cannot be run"
    except SnapfsError as error:
        yield str(error)


def _program_is_there(command: str) -> bool:
    """Whether what a key command begins with can be run; the command itself is not, as it may prompt for something."""
    import shlex
    import shutil

    try:
        return shutil.which(os.path.expanduser(shlex.split(command)[0])) is not None
    except (ValueError, IndexError):
        return False
