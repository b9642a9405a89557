"""What many lives came to, and a file that holds it, so that a run that is stopped goes on where it was.

The file has a line of JSON for each finished chunk of seeds, below a first line that names the source of the
package they were lived with: lives of other code say nothing about this one.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import clorefleet
from clorefleet.domain.errors import BadInput
from clorefleet.fleet.audit import Violation
from clorefleet.simulation.life import live
from clorefleet.simulation.scenario import draw


@dataclass(frozen=True, slots=True)
class Tally:
    """What one life leaves behind: small, since it travels between processes."""

    seed: int
    trace_hash: str
    violation: Violation | None
    ticks: int
    eventful_ticks: int
    faults: int
    fired: Counter[str]
    simulated_s: float
    is_on_sqlite: bool


def tally(seed: int) -> Tally:
    outcome = live(draw(seed))
    return Tally(
        seed,
        outcome.trace_hash,
        outcome.violation,
        outcome.ticks,
        outcome.eventful_ticks,
        outcome.faults,
        outcome.fired,
        outcome.simulated_s,
        outcome.is_on_sqlite,
    )


def tallies(seeds: Sequence[int]) -> list[Tally]:
    return [tally(seed) for seed in seeds]


def source_hash(package: Path = Path(clorefleet.__file__).parent) -> str:
    """Of the package's Python files: their names and bytes, whatever version or commit they belong to."""
    found = sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(file.relative_to(package).as_posix().encode() + b"\0")
        found.update(sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


class RunFile:
    """Finished chunks of one run, or of several over other seeds. One process writes to it."""

    def __init__(self, file: Path, source: str) -> None:
        """
        Raises:
            BadInput: the file is of other code, or no such file.
        """
        self._file = file
        self.lives: list[Tally] = []
        if not file.exists() or file.stat().st_size == 0:
            self._append({"simulated lives of source": source})
            return
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        if _parsed(lines[0]).get("simulated lives of source") != source:
            raise BadInput(
                f"{file} holds lives of other code, or something else.",
                remedy="Name another file: lives of other code say nothing about this one.",
            )
        for line in lines[1:]:
            # The last line may be torn, where the run was killed while it wrote: that chunk is lived again.
            self.lives += map(_tally, _parsed(line).get("lives", ()))
        if not text.endswith("\n"):
            self._write("\n")

    def add(self, chunk: Iterable[Tally]) -> None:
        """Durable when this returns."""
        self._append({"lives": [_document(each) for each in chunk]})

    def _append(self, document: dict[str, Any]) -> None:
        self._write(json.dumps(document, separators=(",", ":")) + "\n")

    def _write(self, text: str) -> None:
        with self._file.open("a", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def _document(life: Tally) -> dict[str, Any]:
    violation = life.violation
    return {each.name: getattr(life, each.name) for each in fields(life)} | {
        "violation": None if violation is None else asdict(violation)
    }


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tally(document: dict[str, Any]) -> Tally:
    violation = document["violation"]
    known = document | {
        "fired": Counter(document["fired"]),
        "violation": None if violation is None else Violation(**violation),
    }
    return Tally(**known)
