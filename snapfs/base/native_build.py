"""Whether the two C extensions were built from the sources that this package goes with.

The build (setup.py) compiles the hash of all C sources and headers into each extension, as its attribute SOURCES_HASH,
and into the program of the supervisor, which is not used if it differs (daemon/supervision/asleep.py).
A checkout has the sources beside the package, and their hash is what is expected. A wheel has none: the build puts the
hash into its file `snapfs/native-build`, with the names of the extensions that could be built.

An extension of other sources may lack a name that the Python code uses, or give one another meaning, and a mount with
it ended in the middle of its start or of a request. Such an extension is refused. A missing one is refused where it was
built or can be: in a checkout, and where the file lists it. A package that was built without it does without.

Invariants:
1. An extension with a fault is never called.
2. The verdict on an extension is that of its first import in the process, or in the one that this was forked from. So
   sources that change under a mount (git pull) do not end it: its supervisor has imported both extensions, and each
   daemon that it forks has these. A supervisor that has slept begins with what is installed when it wakes up, and waits
   for one that fits (daemon/installation_wait.py).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from snapfs.base.errors import UserError

CONTENT: Final = "snapfs.live.content._content"
ROUTER: Final = "snapfs.fuse.kernel._router"
EXTENSIONS: Final = (CONTENT, ROUTER)
BUILD_RECORD: Final = "native-build"
"""The file of a wheel, below snapfs/: the hash, and the names of the extensions in it, a line each."""
_PACKAGE: Final = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """Why an extension cannot be used. `refused`: a mount must not begin; else Python does the same."""

    words: str
    refused: bool
    missing: bool


class Expected(NamedTuple):
    """What an extension must carry. `sources_hash` is empty where this is not known; `remedy` is advice to the user."""

    sources_hash: str
    extensions: tuple[str, ...]
    remedy: str


def native_sources(package: Path) -> list[Path]:
    """The C sources and headers of the package in this folder, sorted."""
    return sorted(package.glob("*/native/*.[ch]"))


def sources_hash(package: Path) -> str:
    """SHA-256 over the names and contents of the C sources and headers, in hexadecimal. OSError."""
    digest = hashlib.sha256()
    for path in native_sources(package):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def is_of(built: Path, sources: str) -> bool:
    """Whether a file that the build made carries this hash; it is not loaded. OSError."""
    return sources.encode() in built.read_bytes()


def write_record(package: Path, sources: str, built: Iterable[str]) -> None:
    """Put the file into a package that is being built (setup.py)."""
    (package / BUILD_RECORD).write_text("".join(f"{line}\n" for line in (sources, *built)))


@functools.cache
def expected(package: Path = _PACKAGE) -> Expected:
    """What the extensions of the package in this folder must be. Any thread."""
    if native_sources(package):
        return Expected(sources_hash(package), EXTENSIONS, "run tools/setup")
    try:
        sources, *built = (package / BUILD_RECORD).read_text().split()
    except (OSError, ValueError):
        return Expected("", (), "install snapfs again")
    return Expected(sources, tuple(built), "install snapfs again")


@functools.cache
def fault(extension: str) -> Fault | None:
    """Why this extension, which is imported, cannot be used; None if it can. Any thread."""
    wanted = expected()
    try:
        built = getattr(importlib.import_module(extension), "SOURCES_HASH", "")
    except ImportError as failure:
        return _missing(extension, str(failure), wanted)
    if built and built == (wanted.sources_hash or built):
        return None
    return Fault(f"the C extensions were built from other sources: {wanted.remedy}", refused=True, missing=False)


def _missing(extension: str, why: str, wanted: Expected) -> Fault:
    words = f"the C extension {extension} is not there ({why})"
    if extension not in wanted.extensions:
        return Fault(words, refused=False, missing=True)
    words += f": {wanted.remedy}, or choose live.data_path=python, which is slower"
    return Fault(words, refused=True, missing=True)


def refusal(data_path: str) -> str:
    """Why no mount may begin with this choice of `live.data_path`; empty if one may. Imports both extensions.

    An extension of other sources is refused for each choice, since the router serves mounts of the Python path too.
    """
    faults = [found for found in map(fault, EXTENSIONS) if found is not None and found.refused]
    faults.sort(key=lambda found: found.missing)
    return next((found.words for found in faults if not (found.missing and data_path == "python")), "")


def check(data_path: str) -> None:
    """UserError if no mount may begin with this choice of `live.data_path`."""
    words = refusal(data_path)
    if words:
        raise UserError(words)
