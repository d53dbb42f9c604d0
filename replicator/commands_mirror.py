"""The commands of the mirror: serve, list, verify, promote, token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec

from replicator import logs
from replicator.mirror import MirrorOptions, names_below
from replicator.mirror_serve import ServeOptions, Tls, serve
from replicator.mirror_server import ServerOptions
from replicator.mirror_volume import SUSPECTS, MirrorVolume
from replicator.security import RIGHTS, Token, Tokens
from snapfs.access import MirrorAccess
from snapfs.blocks import Disk
from snapfs.config import parse_bytes
from snapfs.errors import EXIT_CORRUPT, BusyError, UserError, reason
from snapfs.store import check, wire
from snapfs.store.records import DAMAGED, GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.repository import Repository
from snapfs.store.wire import DEFAULT_PORT, Limits
from snapfs.volume import Volume

TOKENS_FILE: Final = "tokens.json"
_ANSWER_SECONDS: Final = 60.0

json_option = click.option("--json", "as_json", is_flag=True, help="Facts as JSON; ignore fields you do not know.")
root_option = click.option(
    "--root", required=True, type=click.Path(file_okay=False), help="The folder that holds the mirror's volumes."
)
tokens_option = click.option(
    "--tokens", type=click.Path(dir_okay=False), help=f"The file of tokens. Default: {TOKENS_FILE} below the root."
)
_access_options = (
    click.option("--token-file", type=click.Path(dir_okay=False), help="Holds the token; for a URL."),
    click.option("--ca", type=click.Path(dir_okay=False), help="Certificates to trust instead of the system's."),
    click.option("--certificate", type=click.Path(dir_okay=False), help="Our own (PEM), if the mirror asks for one."),
    click.option("--certificate-key", "key", type=click.Path(dir_okay=False), help="Its key. Default: in that file."),
)


def _with_access(command: Callable[..., Any]) -> Any:
    """Give a command the options of `MirrorAccess`, and call it with one."""

    @functools.wraps(command)
    def called(
        *arguments: Any, token_file: str | None, ca: str | None, certificate: str | None, key: str | None, **more: Any
    ) -> Any:
        return command(*arguments, access=MirrorAccess(token_file, ca, certificate, key), **more)

    wrapped: Any = called
    for option in reversed(_access_options):
        wrapped = option(wrapped)
    return wrapped


class _Bytes(click.ParamType):  # type: ignore[type-arg] # generic only in some versions
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(parse_bytes(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("serve", short_help="Be a mirror.")
@root_option
@tokens_option
@click.option(
    "--listen", multiple=True, default=(f"127.0.0.1:{DEFAULT_PORT}",), show_default=True, metavar="HOST:PORT",
    help="Where to listen; may be given more than once.",
)  # fmt: skip
@click.option("--tls-cert", type=click.Path(dir_okay=False), help="Certificate chain (PEM); with --tls-key.")
@click.option("--tls-key", type=click.Path(dir_okay=False), help="Its key (PEM). SIGHUP reads both anew.")
@click.option("--client-ca", type=click.Path(dir_okay=False), help="Demand client certificates that these have signed.")
@click.option("--keep", type=click.IntRange(0), default=0, help="Newest snapshots kept, besides named and held ones. "
              "Default 0: what the source drops is dropped, and nothing else.")  # fmt: skip
@click.option("--max-connections", type=click.IntRange(1), default=512, show_default=True)
@click.option("--max-parts", type=click.IntRange(1, 1024), default=8, show_default=True,
              help="Parts in flight over all volumes: what bounds memory, together with --part-size.")  # fmt: skip
@click.option("--part-size", type=_Bytes(), default="64MiB", show_default=True, help="Largest part that is taken.")
@click.option("--max-rate", type=_Bytes(), default="0B", help="Bytes a second taken from all pushers; 0B: no limit.")
@click.option("--reserve", type=_Bytes(), default="64MiB", show_default=True, help="Room on the disk that is left.")
@click.option("--cache", type=_Bytes(), default="32MiB", show_default=True, help="Recent objects, twice a volume.")
@click.option("--upkeep", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds between upkeeps.")
@click.option("--log-format", type=click.Choice(logs.FORMATS), default="auto", help="text, or JSON lines.")
@click.option("--verbose", is_flag=True, help="Log more.")
def serve_(
    root: str, tokens: str | None, listen: tuple[str, ...], tls_cert: str | None, tls_key: str | None,
    client_ca: str | None, keep: int, max_connections: int, max_parts: int, part_size: int, max_rate: int, reserve: int,
    cache: int, upkeep: float, log_format: str, verbose: bool,
) -> None:  # fmt: skip
    """Keep mirrors of volumes below the root, and serve them to whoever has a token.

    Without TLS everything, tokens included, can be read on the way: listen on the loopback, or on a network of yours.
    """
    logs.set_up(log_format, verbose)
    if (tls_cert is None) != (tls_key is None) or (client_ca is not None and tls_cert is None):
        raise click.UsageError("--tls-cert and --tls-key belong together, and --client-ca needs both")
    tls = Tls(tls_cert, tls_key, client_ca) if tls_cert is not None and tls_key is not None else None
    limits = Limits(part_bytes=min(part_size, wire.MAX_PART_BYTES), window_parts=max(max_parts // 2, 1))
    options = ServeOptions(
        root, _tokens_path(root, tokens), listen, tls, max_connections,
        mirror=MirrorOptions(limits, cache_bytes=cache, reserve_bytes=reserve, keep=keep),
        server=ServerOptions(max_parts=max_parts, rate_bytes=max_rate, upkeep_seconds=upkeep),
    )  # fmt: skip
    asyncio.run(serve(options))


@click.command("list", short_help="Show what a mirror has.")
@click.argument("place")
@_with_access
@json_option
def list_(place: str, access: MirrorAccess, as_json: bool) -> None:
    """Show the volumes of a mirror. PLACE is its root folder, served or not, or its URL."""
    if _is_url(place):
        states = wire.decode(_ask(place.rstrip("/") + wire.volumes_path(), access), wire.VolumeList).volumes
        facts = [msgspec.to_builtins(state) | {"seed": None} for state in states]
    else:
        facts = [_facts_of(place, name) for name in names_below(place)]
    if as_json:
        return click.echo(msgspec.json.format(msgspec.json.encode({"volumes": facts}), indent=2))
    for each in facts:
        newest = each["newest"]
        told = "no snapshot yet"
        if newest:
            record = newest["record"]
            told = f"snapshot {record['number']} of {_utc(record['cut_time_ns'])} is the newest of {each['snapshots']}"
        sealed = "encrypted; " if each["mode"] == wire.Mode.OPAQUE else ""
        who = each["holder"] or "nobody"
        click.echo(f"{each['name']}: {sealed}{told}; generation {each['generation']} ({who})")
    return None


@click.command("verify", short_help="Read everything back and check it.")
@root_option
@click.argument("names", metavar="[VOLUME]...", nargs=-1)
@json_option
def verify(root: str, names: tuple[str, ...], as_json: bool) -> None:
    """Read back all that the snapshots of the mirror's VOLUMES (default: all) need, and check every proof.

    Works while the mirror serves. In a volume that nobody serves, snapshots that are found damaged are marked so. The
    next snapshot that needs what is damaged is only taken together with it.
    """
    wanted = names or tuple(names_below(root))
    found = [_verify_one(root, wire.check_volume_name(name)) for name in wanted]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"volumes": found}), indent=2))
    else:
        for each in found:
            damaged = each["damaged_snapshots"]
            verdict = f"{len(damaged)} snapshots are damaged: {damaged}" if damaged else "all is good"
            if each["bad_objects"] and not damaged:  # of an encrypted volume, where it is not known who needs them
                verdict = f"{each['bad_objects']} objects are damaged or missing"
            click.echo(f"{each['name']}: {each['snapshots']} snapshots, {each['objects']} objects read: {verdict}")
    if any(each["bad_objects"] or each["other_damage"] for each in found):
        raise click.exceptions.Exit(EXIT_CORRUPT)


@click.command("promote", short_help="Fence the old writer off, before another host takes over.")
@click.argument("place")
@click.option("--holder", default="promoted", show_default=True, help="Who is going to write: a name of your choice.")
@_with_access
@json_option
def promote(place: str, holder: str, access: MirrorAccess, as_json: bool) -> None:
    """Start the next generation of a mirror's volume, so that whoever wrote it so far can write it no more.

    PLACE is the volume's URL, https://MIRROR:8700/VOLUME (takes a token with the right to admin), or its folder below
    the root of a mirror that is not running.
    """
    if not wire.HOLDER_NAME.fullmatch(holder):
        raise click.UsageError("--holder is up to 128 of letters, digits and . _ : @ -")
    if _is_url(place):
        state = _promote_there(place, holder, access)
    else:
        mirrored = MirrorVolume.open(place, Disk())
        try:
            mirrored.promote(holder)
            state = mirrored.state()
        finally:
            mirrored.close()
    if as_json:
        return click.echo(msgspec.json.encode(msgspec.to_builtins(state) | {"seed": None}))
    click.echo(f"{state.name}: generation {state.generation} is {state.holder}'s; older writers are refused from now")
    newest = state.newest.decoded() if state.newest is not None else None
    if newest is None:
        return click.echo("There is no snapshot here yet: nothing to go on from.")
    click.echo(f"Newest snapshot: {newest.number}, of {_utc(newest.cut_time_ns)}. What came after it is not here.")
    source = place if _is_url(place) else f"https://THIS-HOST:{DEFAULT_PORT}/{state.name}"
    click.echo("Next, on every other mirror: the same. Then, on the host that takes over:")
    click.echo(f"  snapfs mount --from {source} VOLUME MOUNTPOINT")
    return None


@click.group("token", short_help="Tokens: make, list, revoke.")
def token() -> None:
    """Tokens of a mirror. Changes count from the next request on; the mirror need not be restarted."""


@token.command("create", short_help="Make a token.")
@root_option
@tokens_option
@click.option("--grant", "grants", multiple=True, required=True, metavar="VOLUME:RIGHT",
              help=f"RIGHT is one of {', '.join(RIGHTS)}, each with those before it; VOLUME may be *.")  # fmt: skip
@click.option("--note", default="", help="What it is for.")
@click.option("--days", type=click.FloatRange(min=0.0), default=0.0, help="How long it is good for. Default: for ever.")
@json_option
def token_create(
    root: str, tokens: str | None, grants: tuple[str, ...], note: str, days: float, as_json: bool
) -> None:
    """Make a token and print it, once: only its hash is kept."""
    rights = {volume: right for volume, _, right in (grant.rpartition(":") for grant in grants)}
    made, text = Tokens(_tokens_path(root, tokens)).create(rights, note, days * 86400.0)
    click.echo(msgspec.json.encode({**_token_facts(made), "token": text}) if as_json else text)


@token.command("list", short_help="Show the tokens there are.")
@root_option
@tokens_option
@json_option
def token_list(root: str, tokens: str | None, as_json: bool) -> None:
    """Show the tokens there are, without what would let anybody in."""
    known = Tokens(_tokens_path(root, tokens)).all()
    facts = [_token_facts(each) for each in known.values()]
    if as_json:
        return click.echo(msgspec.json.format(msgspec.json.encode({"tokens": facts}), indent=2))
    for each in facts:
        rights = " ".join(f"{volume}:{right}" for volume, right in each["rights"].items())
        until = f", until {_utc(each['expires'] * 10**9)}" if each["expires"] else ""
        note = f"  ({each['note']})" if each["note"] else ""
        click.echo(f"{each['id']}  {rights}{until}{note}")
    return None


@token.command("revoke", short_help="Make a token worthless.")
@root_option
@tokens_option
@click.argument("name", metavar="ID")
def token_revoke(root: str, tokens: str | None, name: str) -> None:
    """Take the token with this ID out, at once."""
    Tokens(_tokens_path(root, tokens)).revoke(name)
    click.echo(f"token {name} is worth nothing any more")


COMMANDS = (serve_, list_, verify, promote, token)


def _tokens_path(root: str, tokens: str | None) -> str:
    return tokens if tokens is not None else os.path.join(root, TOKENS_FILE)


def _token_facts(token: Token) -> dict[str, Any]:
    return {name: getattr(token, name) for name in ("id", "rights", "note", "created", "expires")}


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


@contextlib.contextmanager
def _reading(root: str, name: str) -> Iterator[Repository]:
    volume = Volume.open(os.path.join(root, name), Disk())
    identity = StoreIdentity(volume.volume_id, volume.seed, volume.opaque)
    repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True)
    try:
        yield repository
    finally:
        repository.close()


def _facts_of(root: str, name: str) -> dict[str, Any]:
    """As `VolumeState`, from the folder, while somebody may serve it."""
    with _reading(root, name) as repository:
        claims = [event.fields for event in repository.events() if event.kind == "claimed"]
        found, newest = repository.snapshots(), repository.latest()
        return {
            "name": name,
            "volume_id": repository.identity.volume_id,
            "mode": wire.Mode.OPAQUE if repository.identity.opaque else wire.Mode.PLAIN,
            "generation": claims[-1]["generation"] if claims else max((r.generation for r in found), default=0),
            "holder": claims[-1]["holder"] if claims else "",
            "snapshots": len(found),
            "newest": {"record": wire.encode_record(newest), "state": newest.state} if newest else None,
            "stored_bytes": sum(info.size for info in repository.index.segments()),
        }


def _verify_one(root: str, name: str) -> dict[str, Any]:
    with _reading(root, name) as repository:
        found = repository.snapshots()
        report = check.verify(repository, found)
        if report.bad:
            numbers = "".join(f"{bad.number:x}\n" for bad in report.bad)
            Disk().replace_file("verify:suspects", os.path.join(repository.store_dir, SUSPECTS), numbers.encode())
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


def _mark(path: str, found: list[SnapshotRecord], report: check.Report) -> None:
    """Note in the log what is damaged, if nobody serves the volume."""
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


def _promote_there(url: str, holder: str, access: MirrorAccess) -> wire.VolumeState:
    base, _, name = url.rstrip("/").rpartition("/")
    body = wire.encode(wire.Promote(holder))
    path = wire.volume_path(name, "promote")
    return wire.decode(_ask(base + path, access, body), wire.VolumeState)


def _ask(url: str, access: MirrorAccess, body: bytes | None = None) -> bytes:
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
        raise wire.decode_problem(error.code, error.read(wire.MAX_JSON_BYTES)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url.partition(wire.PREFIX)[0]}: {reason(error)}") from None


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
