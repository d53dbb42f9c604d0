"""The functions of the C extensions that only tests call: in the build that the tests run on, and in no package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapfs.base import native_build
from snapfs.daemon.supervision import asleep
from snapfs.fuse.kernel import router
from snapfs.live.content import datapath

ROOT = Path(__file__).resolve().parents[2]
HOOKS = {"_content": {"fail_writes", "pack_record"}, "_router": {"UPCALLS"}}
needs_native = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native())


def test_the_tests_run_on_extensions_of_these_sources() -> None:
    """Else most tests of the native data path are skipped, and those of the supervisor's program."""
    assert native_build.refusal(datapath.DEFAULT) == ""
    assert asleep.program() is not None


@needs_native
@pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))
def test_the_tests_run_on_a_build_with_the_hooks() -> None:
    from snapfs.fuse.kernel import _router
    from snapfs.live.content import _content

    for module, names in ((_content, HOOKS["_content"]), (_router, HOOKS["_router"])):
        assert module.TEST_HOOKS, "built without them: run tools/setup --test"
        assert names <= set(dir(module))


LIST_NAMES = """
import importlib.machinery, importlib.util, json, sys
found = {}
for path in sys.argv[1:]:
    name = path.rpartition("/")[2].partition(".")[0]
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    found[name] = [module.TEST_HOOKS, module.SOURCES_HASH, dir(module)]
print(json.dumps(found))
"""


UNOPTIMIZED = """#!/bin/bash
exec cc "${@/#-O[23]/-O0}"
"""
"""A compiler in a third of the time: what is looked at is which functions there are."""


@needs_native
@pytest.mark.parametrize("choice", [None, "0", "1"])
def test_a_package_has_them_only_if_asked_for(tmp_path: Path, choice: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in {"SNAPFS_TEST", "SNAPFS_SANITIZE"}}
    if choice is not None:
        environment["SNAPFS_TEST"] = choice
    compiler = tmp_path / "cc"
    compiler.write_text(UNOPTIMIZED)
    compiler.chmod(0o755)
    environment["CC"] = str(compiler)
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT, env=environment, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    built = [str(path) for path in (tmp_path / "lib").rglob("*.so")]
    listed = subprocess.run([sys.executable, "-c", LIST_NAMES, *built], check=True, capture_output=True, text=True)
    found = json.loads(listed.stdout)
    assert set(found) == set(HOOKS)
    sources_hash = native_build.sources_hash(ROOT / "snapfs")
    assert native_build.expected(tmp_path / "lib/snapfs")[:2] == (sources_hash, native_build.EXTENSIONS)
    for name, (has_hooks, built_from, names) in found.items():
        assert built_from == sources_hash
        assert has_hooks == (choice == "1")
        assert HOOKS[name] & set(names) == (HOOKS[name] if has_hooks else set())
