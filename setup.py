"""Builds the two C extensions of the native data path, and a program; everything else is in pyproject.toml.

The program is what a supervisor is while nothing happens (snapfs/daemon/supervision/asleep.py). All are optional for
the installation: where one cannot be built, `pip install` succeeds with a warning, and a mount reads and writes file
data in Python, which is slower (`snapfs doctor` and the mount's status name the path in use), or the supervisor stays
Python, which takes more memory. A C compiler is needed all the same, since pyfuse3 is built from source. The extension
of the live tree also needs the headers of SQLite (libsqlite3-dev), and is linked with the library that Python's own
module uses: of two copies in one process each would drop the other's locks. The sources of an extension are all .c
files of its folder.

The hash of all sources is compiled into each, and a package gets a file with the hash and the names of what was built:
a mount refuses extensions of other sources (snapfs/base/native_build.py). A built extension of other sources is built
again whatever the times of the files are.

Environment variables:

SNAPFS_TEST=1      builds the functions that only tests call (#ifdef SNAPFS_TEST), =0 leaves them out. Not set: they are
                   built in place (`setup.py build_ext --inplace`, as a developer does) and never into a package.
                   tools/setup sets it to 1 with --test, else to 0. `_content.TEST_HOOKS` reports what was built.
SNAPFS_SANITIZE    =address,undefined or =thread: builds for tools/sanitize.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from snapfs.base import native_build  # noqa: E402 - of the sources that are built, not of an installation

FOLDERS = dict(zip(native_build.EXTENSIONS, ["snapfs/live/native", "snapfs/fuse/native"], strict=True))
PROGRAM, PROGRAM_FOLDER = "snapfs.daemon.supervision.snapfs-supervisor", "snapfs/daemon/native"
SOURCES_HASH = native_build.sources_hash(ROOT / "snapfs")


class BuildAll(build_ext):
    """Builds extensions as usual, and the program as an executable beside the module that runs it.

    Builds again what is of other sources, and records in a package what was built.
    """

    def run(self) -> None:
        super().run()
        if not self.inplace:
            names = [name for name in FOLDERS if Path(self.get_ext_fullpath(name)).exists()]
            native_build.write_record(Path(self.build_lib) / "snapfs", SOURCES_HASH, names)

    def build_extensions(self) -> None:
        """Compile the files of an extension side by side: the compilers are processes of their own."""
        compile_in_turn = self.compiler.compile

        def compile_side_by_side(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = list(pool.map(lambda source: compile_in_turn([source], **options), sources))
            return [name for names in made for name in names]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()

    def get_ext_filename(self, name: str) -> str:
        if name.rpartition(".")[2] == PROGRAM.rpartition(".")[2]:
            return name.replace(".", "/")
        return super().get_ext_filename(name)

    def build_extension(self, ext: Extension) -> None:
        built = Path(self.get_ext_fullpath(ext.name))
        if built.exists() and not native_build.is_of(built, SOURCES_HASH):
            built.unlink()
        if ext.name != PROGRAM:
            return super().build_extension(ext)
        objects = self.compiler.compile(
            ext.sources, output_dir=self.build_temp, macros=ext.define_macros, extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )  # fmt: skip
        folder, name = os.path.split(self.get_ext_fullpath(ext.name))
        return self.compiler.link_executable(objects, name, output_dir=folder, extra_postargs=ext.extra_link_args)


def has_test_hooks() -> bool:
    wanted = os.environ.get("SNAPFS_TEST")
    return wanted == "1" if wanted else "--inplace" in sys.argv


def flags() -> tuple[list[str], list[str]]:
    compile_flags = ["-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra", "-fvisibility=hidden"]
    compile_flags += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]  # as Python's interfaces have them
    link_flags = ["-pthread"]
    if has_test_hooks():
        compile_flags.append("-DSNAPFS_TEST")
    sanitizers = os.environ.get("SNAPFS_SANITIZE")
    if sanitizers:
        compile_flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"]
        link_flags.append(f"-fsanitize={sanitizers}")
    return compile_flags, link_flags


LIBRARIES = {"snapfs.live.content._content": ["sqlite3"]}


def extension(name: str, folder: str) -> Extension:
    compile_flags, link_flags = flags()
    return Extension(
        name,
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.c")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "snapfs").glob("*/native/*.h")),
        libraries=LIBRARIES.get(name, []),
        include_dirs=["snapfs/live/native"],
        define_macros=[("SNAPFS_SOURCES_HASH", f'"{SOURCES_HASH}"')],
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
        optional=True,
    )


BUILT = [*FOLDERS.items(), (PROGRAM, PROGRAM_FOLDER)]
setup(
    ext_modules=[extension(*pair) for pair in BUILT if any((ROOT / pair[1]).glob("*.c"))],
    cmdclass={"build_ext": BuildAll},
)
