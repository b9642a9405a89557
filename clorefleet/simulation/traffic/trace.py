"""A traffic trace: when requests came, and how many tokens went in and out.

Two kinds of CSV are read by their header:

    TIMESTAMP,ContextTokens,GeneratedTokens          instants, as in the Azure LLM inference traces
    timestamp_ms,input_tokens,output_tokens          milliseconds from the start, as in Mooncake's
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import IO

from clorefleet.domain.errors import BadInput

ROWS_MAX = 20_000_000
TOKENS_MAX = 10_000_000
"""In one request; more is a slip of the file."""
ROWS_LEAST = 10
SYNTHETIC = "synthetic"
"""The name of the trace in the package."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival; three tuples of one length."""

    name: str
    offsets_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    generated_tokens: tuple[int, ...]

    @property
    def length_s(self) -> float:
        return self.offsets_s[-1]

    @property
    def summary(self) -> str:
        count = len(self.offsets_s)
        into, out = sum(self.prompt_tokens) / count, sum(self.generated_tokens) / count
        return (
            f"{count:,} requests over {self.length_s / 3600:.2f} h, on average "
            f"{into:,.0f} tokens in and {out:,.0f} out"
        )


def read_trace(path: str) -> Trace:
    """
    Args:
        path: a CSV file, or `synthetic` for the small made-up trace in the package.

    Raises:
        BadInput: the file cannot be read, or is not of a kind named above; says the line.
    """
    if path == SYNTHETIC:
        with (files("clorefleet.data") / "traffic-synthetic.csv").open("r", encoding="utf-8") as file:
            return _read(file, "synthetic (made up, from the package)")
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return _read(file, Path(path).name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"The trace {path} cannot be read: {error}.", remedy=_REMEDY) from error


_REMEDY = (
    "A trace is a CSV whose first line is TIMESTAMP,ContextTokens,GeneratedTokens "
    "or timestamp_ms,input_tokens,output_tokens."
)
_INSTANTS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_OFFSETS = ("timestamp_ms", "input_tokens", "output_tokens")


def _read(file: IO[str], name: str) -> Trace:
    rows = csv.reader(file)
    header = tuple(cell.strip().lstrip("\ufeff") for cell in next(rows, []))
    if header[:3] not in (_INSTANTS, _OFFSETS):
        raise BadInput(
            f"{name} has the columns {', '.join(header)[:80] or 'of an empty file'}.", remedy=_REMEDY
        )
    found = sorted(_requests(rows, name, has_instants=header[:3] == _INSTANTS))
    if len(found) < ROWS_LEAST or found[-1][0] - found[0][0] < 60:
        raise BadInput(f"{name} holds {len(found)} requests: less than a minute of load.", remedy=_REMEDY)
    begin_s = found[0][0]
    offsets, prompts, generated = zip(*((at - begin_s, into, out) for at, into, out in found), strict=True)
    return Trace(name, offsets, prompts, generated)


def _requests(
    rows: Iterator[list[str]], name: str, *, has_instants: bool
) -> Iterator[tuple[float, int, int]]:
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if number > ROWS_MAX:
            raise BadInput(f"{name} has more than {ROWS_MAX:,} lines.")
        try:
            at_s = datetime.fromisoformat(row[0][:26]).timestamp() if has_instants else float(row[0]) / 1000
            into, out = int(row[1]), int(row[2])
        except (ValueError, IndexError) as error:
            raise BadInput(
                f"{name}, line {number} is no request: {','.join(row)[:80]}", remedy=_REMEDY
            ) from error
        if not (0 <= into <= TOKENS_MAX and 0 <= out <= TOKENS_MAX and at_s == at_s and abs(at_s) < 1e13):
            raise BadInput(f"{name}, line {number} has an impossible time or count: {','.join(row)[:80]}")
        yield at_s, into, out
