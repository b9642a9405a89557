"""Is a command line one that an engine's real release takes? Read from the snapshots, without any parser.

Stricter than the releases: no abbreviations, since what is unique today may be ambiguous in the next one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import clorefleet.sandbox
from clorefleet.domain.recipe import EngineName

FOLDER = Path(clorefleet.sandbox.__file__).parent / "payload/engine_flags"
SNAPSHOTS = {
    EngineName.SGLANG: "sglang",
    EngineName.VLLM: "vllm",
    EngineName.LLAMACPP: "llama.cpp",
    EngineName.KTRANSFORMERS: "sglang-kt",
}
_BEFORE_FLAGS = {
    EngineName.SGLANG: "sglang.launch_server",
    EngineName.KTRANSFORMERS: "sglang.launch_server",
    EngineName.VLLM: "serve",
    EngineName.LLAMACPP: "llama-server",
}
_SHAPES = {"int": r"-?\d+", "float": r"-?\d+(\.\d+)?(e-?\d+)?", "tokens": r"\d+(\.\d+)?[kKmMgG]?"}


def snapshot(engine: EngineName) -> dict:
    return json.loads((FOLDER / f"{SNAPSHOTS[engine]}.json").read_text("utf-8"))


def complaints(engine: EngineName, argv: tuple[str, ...]) -> list[str]:
    """What the release would refuse; empty when it takes the command."""
    rows = {flag: row for row in snapshot(engine)["options"] for flag in row[0]}
    words = list(argv)
    words = words[words.index(_BEFORE_FLAGS[engine]) + 1 :]
    if engine is EngineName.VLLM:
        words = words[1:]  # the model, which has no flag
    found, seen = [], set()
    while words:
        flag = words.pop(0)
        if flag not in rows:
            found.append(f"{flag} is no option")
            continue
        _, action, kind, _, choices = rows[flag]
        if flag in seen:
            found.append(f"{flag} is given twice")
        seen.add(flag)
        if action == "removed":
            found.append(f"{flag} was removed")
        if kind is None:
            continue
        value = words.pop(0) if words else ""
        if not value or value in rows:
            found.append(f"{flag} has no value")
        elif choices and value not in choices:
            found.append(f"{flag} does not know {value}")
        elif kind in _SHAPES and not re.fullmatch(_SHAPES[kind], value):
            found.append(f"{flag} wants {kind}, not {value}")
        elif kind == "json":
            json.loads(value)
    return found
