"""The command serve: be a mirror."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import click
from aiohttp import web

from replicator.commands.command_options import ByteSize, with_logs
from replicator.commands.token_commands import root_option, tokens_option, tokens_path
from replicator.mirror.mirror import MirrorOptions
from replicator.mirror.mirror_serve import ServeOptions, Tls, serve
from replicator.mirror.mirror_server import MirrorService, ServerOptions
from snapfs.base.errors import UserError
from snapfs.base.logs import log_output
from snapfs.base.settings.units import parse_seconds
from snapfs.store.protocol import wire
from snapfs.store.protocol.messages import Limits
from snapfs.store.protocol.wire import DEFAULT_PORT


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
@click.option("--lock", "locks", multiple=True, metavar="[VOLUME=]TIME",
              help="What came less than TIME ago (14d) is not dropped by any request, by this host's clock. VOLUME= "
              "for that one only; more than once.")  # fmt: skip
@click.option("--max-connections", type=click.IntRange(1), default=512, show_default=True)
@click.option("--max-per-address", type=click.IntRange(1), help="Of these from one address. Default: 3/4 of them.")
@click.option("--max-parts", type=click.IntRange(1, 1024), default=8, show_default=True,
              help="Parts in flight over all volumes: what bounds memory, together with --part-size.")  # fmt: skip
@click.option("--part-size", type=ByteSize(), default="64MiB", show_default=True, help="Largest part that is taken.")
@click.option("--max-rate", type=ByteSize(), default="0B", help="Bytes a second taken from all pushers; 0B: no limit.")
@click.option("--reserve", type=ByteSize(), default="64MiB", show_default=True, help="Room on the disk that is left.")
@click.option("--cache", type=ByteSize(), default="32MiB", show_default=True, help="Recent objects, twice a volume.")
@click.option("--upkeep", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds between upkeeps.")
@click.option(
    "--verify",
    "share",
    default="off",
    show_default=True,
    metavar="SHARE",
    help="How much of each store is read back and checked a day, as in 10%; what is bad is requested again.",
)
@click.option("--console", is_flag=True, help="Serve the console for people as well, at /console of each address.")
@with_logs
def serve_(
    root: str, tokens: str | None, listen: tuple[str, ...], tls_cert: str | None, tls_key: str | None,
    client_ca: str | None, keep: int, locks: tuple[str, ...], max_connections: int, max_per_address: int | None,
    max_parts: int, part_size: int, max_rate: int, reserve: int, cache: int, upkeep: float, share: str, console: bool,
    log_format: str, verbose: bool,
) -> None:  # fmt: skip
    """Keep mirrors of volumes below the root, and serve them to holders of tokens.

    Without TLS everything, tokens included, can be read on the way: listen on the loopback, or on a network of yours.
    """
    log_output.set_up(log_format, verbose)
    if (tls_cert is None) != (tls_key is None) or (client_ca is not None and tls_cert is None):
        raise click.UsageError("--tls-cert and --tls-key belong together, and --client-ca needs both")
    tls = Tls(tls_cert, tls_key, client_ca) if tls_cert is not None and tls_key is not None else None
    limits = Limits(part_bytes=min(part_size, wire.MAX_PART_BYTES), window_parts=max(max_parts // 2, 1))
    lock_s, locks_s = parse_locks(locks)
    options = ServeOptions(
        root, tokens_path(root, tokens), listen, tls, max_connections, max_per_address or 0, site=_console(console),
        mirror=MirrorOptions(
            limits, cache_bytes=cache, reserve_bytes=reserve, keep=keep, lock_s=lock_s, locks_s=locks_s,
            verify_share=_share_a_day(share),
        ),
        server=ServerOptions(max_parts=max_parts, rate_bytes=max_rate, upkeep_seconds=upkeep),
    )  # fmt: skip
    asyncio.run(serve(options))


def _console(wanted: bool) -> Callable[[MirrorService, bool], web.Application] | None:
    if not wanted:
        return None
    from replicator.console.console_app import console_application  # with its template library, only where it is wanted

    return console_application


def _share_a_day(text: str) -> float:
    """As a fraction. Raises UsageError."""
    from snapfs.base.settings import config

    try:
        return config.decode({"verify": {"share": text}}, "--verify").verify.share_a_day
    except UserError as error:
        raise click.UsageError(str(error)) from None


def parse_locks(texts: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The lock of all volumes, and those of single ones, in seconds. Raises UsageError."""
    everyone, single = 0.0, {}
    for text in texts:
        volume, equals, time_ = text.rpartition("=")
        try:
            seconds = float(parse_seconds(time_))
        except ValueError as error:
            raise click.UsageError(f"--lock {text}: {error}") from None
        if equals:
            single[wire.check_volume_name(volume)] = seconds
        else:
            everyone = seconds
    return everyone, single


COMMANDS = (serve_,)
