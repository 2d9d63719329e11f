"""Arrows go one way: core <- runtime <- services <- cli, and core is pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tidy.tree import imports_of, modules_under, root, short

services = ("gateway", "usermanager", "dhtnode", "replicator", "keygen")
may_import: dict[str, tuple[str, ...]] = {
    "core": ("core",),
    "runtime": ("core", "runtime"),
    **{name: ("core", "runtime", name) for name in services},
    "cli": ("core", "runtime", "cli", *services),
}

# What core may use: values and arithmetic. No clock, socket, file, thread or global random.
pure = {
    "__future__", "abc", "array", "ast", "base64", "binascii", "bisect", "collections",
    "collections.abc", "contextlib", "dataclasses", "datetime", "enum", "fractions", "functools",
    "hashlib", "heapq", "hmac", "itertools", "json", "math", "operator", "re", "string", "struct",
    "types", "typing", "unicodedata", "urllib.parse", "zlib",
    "google_crc32c", "librt.vecs", "mmh3", "msgspec", "mypy_extensions", "sortedcontainers",
}  # fmt: skip

# Calls that reach outside although their module is allowed.
impure_calls = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "open", "input"}

modules = [path for path in modules_under("services") if len(path.relative_to(root).parts) > 2]
core = [path for path in modules if path.relative_to(root).parts[1] == "core"]


@pytest.mark.parametrize("path", modules, ids=short)
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(root).parts[1]
    for name in imports_of(path):
        if name.startswith("services."):
            target = name.split(".")[1]
            assert target in may_import[package], f"services.{package} imports {name}"
        assert name.split(".")[0] not in ("tests", "bench"), f"{short(path)} imports {name}"


@pytest.mark.parametrize("path", core, ids=short)
def test_core_is_pure(path: Path) -> None:
    outside = [n for n in imports_of(path) if n not in pure and not n.startswith("services.core")]
    assert not outside, f"{short(path)} imports {outside}"
    calls = [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    assert not impure_calls.intersection(calls)


def test_the_rule_knows_every_package() -> None:
    assert {path.relative_to(root).parts[1] for path in modules} <= set(may_import)
