"""The command line of `vllm serve`.

As in the real program underscores and dashes are the same, an option of a JSON argument may be written with
dots (`--speculative-config.method mtp`), and token counts may end in k or K. Parsers of tool calls and
reasoning are looked up after parsing, which ends the program with status 1.
"""

from __future__ import annotations

import argparse
import json

import real_flags

VERSION = real_flags.snapshot("vllm")["version"]
_JSON_FLAGS = frozenset(
    flag for row in real_flags.snapshot("vllm")["options"] if row[2] == "json" for flag in row[0]
)
_DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8000,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
}
_LOOKED_UP = {"--tool-call-parser": "tool call parser", "--reasoning-parser": "reasoning parser"}


def parse(words: list[str]) -> argparse.Namespace:
    """Ends the program with status 2 for an unknown flag or a bad value, as argparse does."""
    made = real_flags.parser("vllm", "vllm serve")
    made.set_defaults(**_DEFAULTS)
    args = made.parse_args(_without_dots([_dashed(word) for word in words]))
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        made.exit(1, "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser\n")
    for flag, name in _LOOKED_UP.items():
        given, known = getattr(args, flag[2:].replace("-", "_")), real_flags.choices("vllm", flag) or []
        if given and given not in known:
            made.exit(1, f"KeyError: 'invalid {name}: {given} (chose from {{ {','.join(known)} }})'\n")
    return args


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") and "." not in name else word


def _without_dots(words: list[str]) -> list[str]:
    """Fold `--config.key value` into one JSON argument."""
    kept: list[str] = []
    folded: dict[str, dict] = {}
    rest = iter(words)
    for word in rest:
        name, _, tail = word.partition(".")
        name = name.replace("_", "-")
        if name not in _JSON_FLAGS or not tail:
            kept.append(word)
            continue
        key, equals, value = tail.partition("=")
        value = value if equals else next(rest, "")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        folded.setdefault(name, {})[key] = parsed
    for name, value in folded.items():
        kept += [name, json.dumps(value)]
    return kept
