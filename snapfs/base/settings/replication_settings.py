"""The settings of replication: its mode, its targets, the key that encrypts what they get.

Invariants:
1. The structs are frozen, as those of volume_settings.
2. `${NAME}` in a setting of a target or of the encryption is the environment's NAME, put in where the setting is used
   (`expanded`): what a status or configcheck prints is the setting as it was written.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from snapfs.base.errors import UserError
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.settings.units import Bytes, Seconds

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class TargetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place that snapshots are replicated to: a table `[[replication.target]]`."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(https?|file|s3|gs|az)://.+",
            description="https://MIRROR:8700/NAME (a mirror), file:///FOLDER (a folder, on another disk), or "
            "s3://BUCKET/PREFIX, gs://..., az://... (an object store).",
        ),
    ]
    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_-]{0,40}$",
            description="What it is called in status and metrics. Empty: its host, folder or bucket.",
        ),
    ] = ""
    token_file: Annotated[
        str,
        Meta(
            description="A file with the mirror's token, or with the key id and secret of an object store on two lines "
            "(else from the environment). A file, so that no secret stands among settings."
        ),
    ] = ""
    ca: Annotated[str, Meta(description="Certificates to trust, a PEM file. Empty: those that the system trusts.")] = ""
    certificate: Annotated[
        str, Meta(description="Our own certificate, a PEM file, where the mirror requires one; with `key`.")
    ] = ""
    key: Annotated[str, Meta(description="The key of `certificate`, a PEM file. Empty: it is in that file.")] = ""
    limit: Annotated[Bytes, Meta(description="Most bytes a second to this target. 0B: as fast as the link likes.")] = (
        Bytes(0)
    )
    options: Annotated[
        dict[str, str],
        Meta(description="Options of an object store, as obstore calls them: endpoint, region, allow_http..."),
    ] = {}
    retention: Annotated[
        RetentionSettings,
        Meta(
            description="What is kept there, by the rules of [retention]: {last = 20, daily = 90}, or a table "
            "[replication.target.retention]. The agent drops the rest, and what [retention] drops here stays there. "
            "Without a rule the target follows this host's drops (`drops`)."
        ),
    ] = RetentionSettings()


class EncryptionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The owner's key of what targets get: a table `[replication.encryption]`."""

    key_file: Annotated[
        str, Meta(description="A file with the key: 32 bytes, 64 hex digits or a passphrase, that others cannot read.")
    ] = ""
    key_command: Annotated[
        str, Meta(description="A command that prints the key, such as `pass show snapfs/pg`. No shell runs it.")
    ] = ""

    @property
    def is_on(self) -> bool:
        return bool(self.key_file or self.key_command)


class ReplicationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the history goes besides this disk. `snapfs-replicator agent` does it."""

    mode: Annotated[
        Literal["async", "bounded", "sync"],
        Meta(
            description="What the application may lose if this host is gone. async: the snapshots still on their way. "
            "bounded: at most `bound` of its work, for which it is slowed down, and in the end held, when "
            "replication falls behind. sync: a snapshot made by command is only answered when it is replicated. "
            "async, because a link that is down must not stop an application whose owner did not choose so."
        ),
    ] = "async"
    bound: Annotated[
        Seconds,
        Meta(description="Of mode bounded: the oldest work that may be on this host alone. Some retries fit into it."),
    ] = Seconds(30)
    copies: Annotated[
        int, Meta(ge=1, description="So many targets must have a snapshot for it to count as replicated.")
    ] = 1
    wait: Annotated[
        Seconds,
        Meta(
            description="How long a snapshot with wait=replicated waits for its targets before it fails with "
            "ETIMEDOUT. The snapshot is then made, and still on its way."
        ),
    ] = Seconds(60)
    claim: Annotated[
        Literal["try", "require"],
        Meta(
            description="Whether a mount waits for its mirrors to confirm that this host is still the writer. require: "
            "so many as `copies` must, or there is no mount. try: those that answer are believed, and silence stops "
            "nothing. try, because a mirror refuses who is not its writer in any case, and a database must be able to "
            "start while a link is down."
        ),
    ] = "try"
    fenced: Annotated[
        Literal["read-only", "local"],
        Meta(
            description="What a mount does when another host has become the writer. read-only: nothing changes any "
            "more (EROFS). local: it goes on for this host alone. read-only, because what an application acknowledges "
            "on a host that was replaced is lost to those it was promised to."
        ),
    ] = "read-only"
    history: Annotated[
        bool,
        Meta(
            description="Send, after an outage, also the snapshots between; the newest always goes first. Off: a "
            "target has a gap where the link was down."
        ),
    ] = True
    drops: Annotated[
        Literal["follow", "keep"],
        Meta(
            description="What a target does when a snapshot is dropped here, by a rule or a person. follow: drop it "
            "there too (a mirror's token takes the right to prune). keep: leave that to its operator."
        ),
    ] = "follow"
    hold: Annotated[
        Seconds,
        Meta(
            description="How long a target that cannot be reached keeps its newest snapshot from being dropped here: "
            "the next difference to it is made against that. After that everything is sent anew."
        ),
    ] = Seconds(7 * 86400)
    encryption: Annotated[
        EncryptionSettings,
        Meta(
            description='Encrypt what targets get, with a key that they never see: {key_file = "/etc/snapfs/pg.key"} '
            'or {key_command = "pass show snapfs/pg"}, or a table [replication.encryption]. Off, because a lost key is '
            "a lost history. What is on this disk is not encrypted by it."
        ),
    ] = EncryptionSettings()
    target: Annotated[
        tuple[TargetSettings, ...],
        Meta(description="Where to: a table [[replication.target]] for each target. None: nothing is replicated."),
    ] = ()


Table = TypeVar("Table", TargetSettings, EncryptionSettings)


def expanded(table: Table) -> Table:
    """The table with each ``${NAME}`` replaced by what the environment has. UserError where it has none."""

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: put_in(text) for name, text in value.items()}
        return _VARIABLE.sub(_from_environment, value) if type(value) is str else value

    given = {name: getattr(table, name) for name in table.__struct_fields__}
    return msgspec.structs.replace(table, **{name: put_in(value) for name, value in given.items()})


def _from_environment(found: re.Match[str]) -> str:
    name = found[1]
    if name not in os.environ:
        raise UserError(
            f"the settings of replication name ${{{name}}}, and {name} is not set in the environment: set it for this "
            "process (of a unit: in its EnvironmentFile)"
        )
    return os.environ[name]


def target_name(target: TargetSettings) -> str:
    """What a target is called: its own name, else a name made of its URL."""
    scheme, _, rest = target.url.partition("://")
    place = rest if scheme == "file" else rest.partition("/")[0]
    return target.name or re.sub(r"[^a-z0-9_-]+", "-", place.lower()).strip("-")[-40:] or scheme


def plain_url(url: str) -> str:
    """The URL without anything that could be a secret: a password, a query."""
    head, at, rest = url.partition("@")
    scheme, _, _ = head.partition("://")
    return (f"{scheme}://{rest}" if at else url).partition("?")[0]
