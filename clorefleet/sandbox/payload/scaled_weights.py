"""Reads the marks that the sandbox's hub puts in front of scaled-down weight files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

MARK = b"CLOREFLEET-SCALED-WEIGHTS v1 "
GGUF_MAGIC = b"GGUF"
_HEADER_BYTES_MAX = 4096
_SCALED_BYTES_MIN = 4096
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.(gguf|safetensors)$")


class BadWeights(Exception):
    """The files are not a whole checkpoint; the message is what the real engine would print."""


@dataclass(frozen=True)
class Weights:
    model: str
    checkpoint: str
    layout: str
    true_bytes: int
    files: int


def header(path: Path) -> dict | None:
    """The mark of one file, or None if it is not a scaled weight file."""
    with path.open("rb") as file:
        first = file.read(_HEADER_BYTES_MAX)
    if not first.startswith(MARK):
        return None
    return json.loads(first[len(MARK) :].split(b"\n", 1)[0])


def is_real_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def true_size(path: Path) -> int:
    """What the file stands for on disk: its true size if it is a scaled weight file."""
    size = path.stat().st_size
    if size < _SCALED_BYTES_MIN:
        return size
    try:
        told = header(path)
    except (OSError, ValueError):
        return size
    if told is None:
        return size
    return int(told["true_bytes"] * min(1.0, size / scaled_size(told)))


def scaled_size(told: dict) -> int:
    return max(_SCALED_BYTES_MIN, round(told["true_bytes"] * told["scale"]))


def parts_of(first: Path) -> list[Path]:
    """All files of a split checkpoint, given its first; the file itself if it is not split."""
    match = _PART.search(first.name)
    if match is None:
        return [first]
    count, kind = int(match[2]), match[3]
    stem = first.name[: match.start()]
    return [first.with_name(f"{stem}-{number:05}-of-{count:05}.{kind}") for number in range(1, count + 1)]


def load(files: list[Path]) -> Weights:
    """Sum up a checkpoint. Raises BadWeights if a file is missing, cut short or of another checkpoint."""
    seen, total, told = set(), 0, None
    for path in files:
        if not path.is_file():
            raise BadWeights(f"failed to open {path}: No such file or directory")
        told = header(path)
        if told is None:
            raise BadWeights(f"{path.name}: invalid magic characters, the file is corrupted")
        if path.stat().st_size < scaled_size(told):
            raise BadWeights(
                f"{path.name}: tensor data is not within the file bounds, model is corrupted or incomplete"
            )
        seen.add((told["model"], told["checkpoint"], told["layout"]))
        total += told["true_bytes"]
    if told is None or len(seen) != 1:
        raise BadWeights("the files are not parts of one checkpoint")
    model, checkpoint, layout = seen.pop()
    return Weights(model, checkpoint, layout, total, len(files))
