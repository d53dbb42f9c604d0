"""The commands on a mirror's volumes: list, verify, promote."""

from __future__ import annotations

import contextlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from replicator.commands.command_options import is_url, json_option, print_json, utc_in_text, with_access
from replicator.commands.token_commands import root_option
from replicator.mirror.mirror import names_below
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_CORRUPT, BusyError, UserError, reason
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.protocol import message_codec, messages, wire, wire_fields
from snapfs.store.protocol.wire import DEFAULT_PORT
from snapfs.store.repair import verify as check
from snapfs.store.repair.suspects import write_suspects
from snapfs.store.repair.verify_report import Report
from snapfs.store.repository.repository import Repository

_ANSWER_SECONDS: Final = 60.0


@click.command("list", short_help="Show what a mirror has.")
@click.argument("place")
@with_access
@json_option
def list_(place: str, access: MirrorAccess, as_json: bool) -> None:
    """Show the volumes of a mirror. PLACE is its root folder, served or not, or its URL."""
    if is_url(place):
        states = message_codec.decode(
            _request(place.rstrip("/") + wire.volumes_path(), access), messages.VolumeList
        ).volumes
        facts = [_shown(msgspec.to_builtins(state)) for state in states]
    else:
        facts = [_shown(_facts_of(place, name)) for name in names_below(place)]
    if as_json:
        return print_json({"volumes": facts})
    for each in facts:
        newest = each["newest"]
        newest_text = "no snapshot yet"
        if newest:
            record = newest["record"]
            time = utc_in_text(record["cut_time_ns"])
            newest_text = f"snapshot {record['number']} of {time} is the newest of {each['snapshots']}"
        sealed = "encrypted; " if each["mode"] == wire.Mode.ENCRYPTED else ""
        who = each["writer_id"] or "no writer"
        click.echo(f"{each['name']}: {sealed}{newest_text}; generation {each['generation']} ({who})")
    return None


@click.command("verify", short_help="Read everything back and check it.")
@root_option
@click.argument("names", metavar="[VOLUME]...", nargs=-1)
@json_option
def verify(root: str, names: tuple[str, ...], as_json: bool) -> None:
    """Read back all that the snapshots of the mirror's VOLUMES (default: all) need, and check every content hash.

    Works while the mirror serves. In a volume that is not served, snapshots that are found damaged are marked so. The
    next snapshot that needs what is damaged is only taken together with it.
    """
    wanted = names or tuple(names_below(root))
    found = [_verify_one(root, wire.check_volume_name(name)) for name in wanted]
    if as_json:
        print_json({"volumes": found})
    else:
        for each in found:
            damaged = each["damaged_snapshots"]
            verdict = f"{len(damaged)} snapshots are damaged: {damaged}" if damaged else "all is good"
            if each["other_damage"] and not damaged:
                verdict = "what they need is good, and there is other damage"
            if each["bad_objects"] and not damaged:  # of an encrypted volume, where it is not known who needs them
                verdict = f"{each['bad_objects']} objects are damaged or missing"
            click.echo(f"{each['name']}: {each['snapshots']} snapshots, {each['objects']} objects read: {verdict}")
            for line in each["other_damage"]:
                click.echo(f"  {line}")
    if any(each["bad_objects"] or each["other_damage"] for each in found):
        raise click.exceptions.Exit(EXIT_CORRUPT)


@click.command("promote", short_help="Fence the old writer off, before another host takes over.")
@click.argument("place")
@click.option(
    "--holder", "writer_id", default="promoted", show_default=True, help="Who is going to write: a name of your choice."
)
@with_access
@json_option
def promote(place: str, writer_id: str, access: MirrorAccess, as_json: bool) -> None:
    """Start the next generation of a mirror's volume, so that its writer so far can write it no more.

    PLACE is the volume's URL, https://MIRROR:8700/VOLUME (takes a token with the right to admin), or its folder below
    the root of a mirror that is not running.
    """
    if not wire.WRITER_ID.fullmatch(writer_id):
        raise click.UsageError("--holder is up to 128 of letters, digits and . _ : @ -")
    if is_url(place):
        state = _promote_there(place, writer_id, access)
    else:
        mirrored = MirrorVolume.open(place, Disk())
        try:
            mirrored.promote(writer_id)
            state = mirrored.state()
        finally:
            mirrored.close()
    if as_json:
        return click.echo(msgspec.json.encode(_shown(msgspec.to_builtins(state))))
    click.echo(
        f"{state.name}: generation {state.generation} is {state.writer_id}'s; older writers are refused from now"
    )
    newest = state.newest.decoded() if state.newest is not None else None
    if newest is None:
        return click.echo("There is no snapshot here yet: nothing to go on from.")
    click.echo(
        f"Newest snapshot: {newest.number}, of {utc_in_text(newest.cut_time_ns)}. What came after it is not here."
    )
    source = place if is_url(place) else f"https://THIS-HOST:{DEFAULT_PORT}/{state.name}"
    click.echo("Next, on every other mirror: the same. Then, on the host that takes over:")
    click.echo(f"  snapfs mount --from {source} VOLUME MOUNTPOINT")
    return None


COMMANDS = (list_, verify, promote)


@contextlib.contextmanager
def _reading(root: str, name: str) -> Iterator[Repository]:
    volume = Volume.open(os.path.join(root, name), Disk())
    identity = StoreIdentity(volume.volume_id, volume.seed, volume.holds_ciphertext)
    repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True)
    try:
        yield repository
    finally:
        repository.close()


def _shown(state: dict[str, Any]) -> dict[str, Any]:
    """A `VolumeState` as --json prints it: without the seed, and with the writer under its name of today.

    `holder` is its name until 0.1 and goes with 0.3.
    """
    return {**state, "seed": None, "writer_id": state["holder"]}


def _facts_of(root: str, name: str) -> dict[str, Any]:
    """As `VolumeState`, from the folder, which may be served meanwhile."""
    with _reading(root, name) as repository:
        claims = [event.fields for event in repository.events() if event.kind == "claimed"]
        found, newest = repository.snapshots(), repository.latest()
        return {
            "name": name,
            "volume_id": repository.identity.volume_id,
            "mode": wire.Mode.ENCRYPTED if repository.identity.encrypted else wire.Mode.PLAIN,
            "generation": claims[-1]["generation"] if claims else max((r.generation for r in found), default=0),
            "holder": claims[-1]["holder"] if claims else "",
            "snapshots": len(found),
            "newest": {"record": wire_fields.encode_record(newest), "state": newest.state} if newest else None,
            "stored_bytes": sum(info.size for info in repository.index.segments()),
        }


def _verify_one(root: str, name: str) -> dict[str, Any]:
    with _reading(root, name) as repository:
        found = repository.snapshots()
        report = check.verify(repository, found)
        if report.bad:
            write_suspects(repository.store_dir, (bad.number for bad in report.bad), Disk())
    if report.damaged_snapshots or any(record.state == DAMAGED for record in found):
        _mark(os.path.join(root, name), found, report)
    return {
        "name": name,
        "snapshots": report.snapshots,
        "objects": report.objects,
        "stored_bytes": report.stored_bytes,
        "bad_objects": report.bad_objects,
        "bad": [{"number": bad.number, "why": bad.why, "snapshots": bad.snapshots} for bad in report.bad],
        "damaged_snapshots": report.damaged_snapshots,
        "other_damage": report.other_damage,
    }


def _mark(path: str, found: list[SnapshotRecord], report: Report) -> None:
    """Note in the log what is damaged, if the volume is not served."""
    try:
        mirrored = MirrorVolume.open(path, Disk())
    except BusyError:
        return
    try:
        for record in found:
            bad = record.number in report.damaged_snapshots
            mirrored.repository.mark(record.number, DAMAGED if bad else GOOD, report.why(record.number))
    finally:
        mirrored.close()


def _promote_there(url: str, writer_id: str, access: MirrorAccess) -> messages.VolumeState:
    base, _, name = url.rstrip("/").rpartition("/")
    body = message_codec.encode(messages.Promote(writer_id))
    path = wire.volume_path(name, "promote")
    return message_codec.decode(_request(base + path, access, body), messages.VolumeState)


def _request(url: str, access: MirrorAccess, body: bytes | None = None) -> bytes:
    """One request to a mirror. Raises RefusedError, UserError."""
    headers = {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION), "Content-Type": wire.JSON_TYPE}
    headers |= wire.authorization(access.token())
    context = access.tls() if url.startswith("https://") else None
    try:
        request = urllib.request.Request(url, body, headers, method="GET" if body is None else "POST")
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS, context=context) as answer:
            data: bytes = answer.read(wire.MAX_ANSWER_BYTES)
            return data
    except urllib.error.HTTPError as error:
        raise message_codec.decode_problem(error.code, error.read(wire.MAX_JSON_BYTES)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url.partition(wire.PREFIX)[0]}: {reason(error)}") from None
