"""The command line of `llama-server`: its own parser's rules and texts, its release's arguments."""

from __future__ import annotations

import sys

import real_flags

VERSION = real_flags.snapshot("llama.cpp")["version"]
_REPEATED = ("override_tensor",)


def _named(row: list) -> dict[str, str]:
    """Names by flag. What stands after the last plain long flag of a two-sided switch is its other side."""
    flags = row[0]
    plain = [flag for flag in flags if flag.startswith("--") and not flag.startswith("--no-")]
    name = (plain or flags)[0].lstrip("-").replace("-", "_")
    if row[2] is not None or not plain or len(plain) == sum(flag.startswith("--") for flag in flags):
        return dict.fromkeys(flags, name)
    last = flags.index(plain[-1])
    return {flag: name if index <= last else f"no_{name}" for index, flag in enumerate(flags)}


_ROWS = [row for row in real_flags.snapshot("llama.cpp")["options"] if row[0]]
_NAMES = {flag: name for row in _ROWS for flag, name in _named(row).items()}
_BY_FLAG = {flag: row for row in _ROWS for flag in row[0]}


def parse(words: list[str]) -> dict:
    """Values by name; absent arguments are absent. Ends the program as the real one does for a wrong one."""
    given: dict = {}
    rest = iter(words)
    for word in rest:
        row = _BY_FLAG.get(word)
        if row is None:
            _refuse(f"error: invalid argument: {word}")
        _, action, kind, count, choices = row
        name = _NAMES[word]
        if action == "removed":
            _refuse(f'error while handling argument "{word}": the argument has been removed.')
        if kind is None:
            given[name] = True
            continue
        value = [_value(word, next(rest, None), kind, choices) for _ in range(count or 1)]
        value = value if count else value[0]
        if name in _REPEATED:
            value = [*given.get(name, []), value]
        given[name] = value
    return given


def _value(word: str, text: str | None, kind: str, choices: list[str] | None) -> object:
    if text is None:
        _refuse(f'error while handling argument "{word}": expected value for argument')
    try:
        value = real_flags.KINDS[kind](text)
    except ValueError:
        _refuse(f'error while handling argument "{word}": stoi')
    if choices and text not in choices:
        _refuse(f"error while handling argument \"{word}\": unknown value: '{text}'")
    return value


def _refuse(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(1)
