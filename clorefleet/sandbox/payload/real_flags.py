"""The command lines of the engines' real releases, from the snapshots in `engine_flags/`.

Rows are [flags, action, kind, nargs, choices]; `tools/engine_flags.py` in the sources makes them. argparse's
own rules hold where the engine uses argparse: abbreviations are taken, and unknown flags, values of the wrong
kind and values outside a list of choices end the program with status 2.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_FACTORS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def snapshot(engine: str) -> dict:
    return json.loads((Path(__file__).parent / "engine_flags" / f"{engine}.json").read_text("utf-8"))


def tokens(text: str) -> int:
    match = _TOKENS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(float(match[1]) * _FACTORS[match[2]])


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"Value {text} cannot be converted to JSON.") from None


KINDS = {"text": str, "int": int, "float": float, "tokens": tokens, "json": _json}


class _Switch(argparse.Action):
    """`--x`/`--no-x` and vLLM's `--enable-x`/`--disable-x`."""

    def __call__(self, parser, namespace, values, option_string=None):
        first = self.option_strings[0]
        is_inverse = any(
            first.startswith(start) and option_string == turned + first[len(start) :]
            for start, turned in (("--enable-", "--disable-"), ("--disable-", "--enable-"))
        )
        is_off = option_string.startswith("--no-") or is_inverse
        setattr(namespace, self.dest, not is_off)


def parser(engine: str, prog: str) -> argparse.ArgumentParser:
    """As the release's own: options that are not given are None, or False for a switch."""
    made = argparse.ArgumentParser(prog=prog)
    for flags, action, kind, count, choices in snapshot(engine)["options"]:
        if not flags:
            made.add_argument("model_tag", nargs=count)
        elif action in ("booleanoptional", "enabledisable"):
            made.add_argument(*flags, action=_Switch, nargs=0, default=None)
        elif kind is None:
            made.add_argument(*flags, action="store_true")
        else:
            more = {"choices": choices} if choices and engine != "vllm" else {}
            made.add_argument(*flags, type=KINDS[kind], nargs=count, **more)
    return made


def choices(engine: str, flag: str) -> list[str] | None:
    """The values that the release takes for a flag; None where it takes any."""
    return next((row[4] for row in snapshot(engine)["options"] if flag in row[0]), None)
