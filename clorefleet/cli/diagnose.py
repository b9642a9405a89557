"""`clorefleet diagnose`: what the log of an engine means. Reads a file; asks nobody and rents nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, say_verbatim

if TYPE_CHECKING:
    from clorefleet.domain.recipe import EngineName

app = typer.Typer(rich_markup_mode=None, add_completion=False)
TAIL_BYTES = 1_000_000
"""Of a longer log only its end is read: that is where an engine says why it stopped."""
LINES_MAX = 20_000


@app.command()
def diagnose(
    file: str = typer.Argument(help="The log of an engine; `-` reads standard input."),
    engine: str = typer.Option("", "--engine", help="Whose log it is; default: told by its lines."),
    exit_code: int = typer.Option(-1, "--exit-code", help="How it ended, if you know: 137 says much."),
) -> None:
    """Say what a log of an engine means, and what would cure it.

    Works for logs of SGLang, vLLM, llama.cpp and KTransformers from anywhere. Ends with 0 when a cause
    was found, and with 1 when not.

    Examples:

      clorefleet diagnose sglang.log

      docker logs vllm 2>&1 | clorefleet diagnose - --engine vllm
    """
    from clorefleet.domain.failure import Cause
    from clorefleet.engine import engine_of
    from clorefleet.engine.diagnosis import engine_of_log

    log = _read(file)
    name = _engine_named(engine) if engine else engine_of_log(log)
    found = engine_of(name).diagnose(log, None if exit_code < 0 else exit_code)
    is_known = found.cause is not Cause.UNKNOWN
    corrections = [each.value for each in engine_of(name).corrections(found.cause)]
    if options.as_json:
        print_json(
            {
                "engine": name.value,
                "cause": found.cause.value,
                "text": found.text,
                "remedy": found.remedy,
                "line": found.line,
                "corrections": corrections,
            }
        )
    elif is_known:
        say(f"Cause: {found.text} ({found.cause}, read as a log of {name}).")
        if found.line:
            say_verbatim(f"Line: {found.line}")
        if found.remedy:
            say(f"Remedy: {found.remedy}.")
        if corrections:
            said = ", then ".join(each.replace("_", " ") for each in corrections)
            say(f"clorefleet would try by itself, once each: {said}.")
    else:
        note(f"No known cause in this log, read as one of {name}. {found.text}.")
    if not is_known:
        raise typer.Exit(1)


def _read(file: str) -> tuple[str, ...]:
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.text import clean_lines

    try:
        raw = sys.stdin.buffer.read(TAIL_BYTES) if file == "-" else _tail(Path(file))
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BadInput(f"{file[:120]} cannot be read: {why}.", remedy="Name a log file, or - .") from error
    lines = tuple(clean_lines(raw.decode("utf-8", "replace"), max_lines=LINES_MAX))
    if not any(line.strip() for line in lines):
        raise BadInput("The log is empty.", remedy="Name the engine's log, or pipe it in with - .")
    return lines


def _tail(path: Path) -> bytes:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL_BYTES))
        return stream.read(TAIL_BYTES)


def _engine_named(word: str) -> EngineName:
    from clorefleet.cli.nearest import did_you_mean
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.recipe import EngineName

    try:
        return EngineName(word.lower())
    except ValueError:
        names = ", ".join(each.value for each in EngineName)
        hint = did_you_mean(word, names.split(", "))
        raise BadInput(f"“{word[:40]}” is not an engine I know.", remedy=f"{hint}Use {names}.") from None
