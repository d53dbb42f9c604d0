"""The two C extensions of the native data path; all else about the project stands in pyproject.toml.

Both are optional: without a C compiler the installation goes through, and snapfs serves bytes from Python. Sources are
found by folder, so a new file needs no line here. SNAPFS_SANITIZE=address,undefined or =thread builds for
tools/sanitize.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
EXTENSIONS = {"snapfs.live._content": "snapfs/live/native", "snapfs.fuse._router": "snapfs/fuse/native"}


def flags() -> tuple[list[str], list[str]]:
    compile_flags = ["-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra", "-fvisibility=hidden"]
    compile_flags += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]  # as Python's interfaces have them
    link_flags = ["-pthread"]
    sanitizers = os.environ.get("SNAPFS_SANITIZE")
    if sanitizers:
        compile_flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"]
        link_flags.append(f"-fsanitize={sanitizers}")
    return compile_flags, link_flags


def extension(name: str, folder: str) -> Extension:
    compile_flags, link_flags = flags()
    return Extension(
        name,
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.c")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "snapfs").glob("*/native/*.h")),
        include_dirs=["snapfs/live/native"],
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
        optional=True,
    )


setup(ext_modules=[extension(*pair) for pair in EXTENSIONS.items() if any((ROOT / pair[1]).glob("*.c"))])
