"""The parser's own complaints in the words and the form of all other errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from clorefleet.cli.context import options
from clorefleet.cli.nearest import did_you_mean
from clorefleet.domain.errors import BadInput

_EXAMPLE = re.compile(r"^Examples?:$(.*)", re.MULTILINE | re.DOTALL)


def examples(help_text: str) -> list[str]:
    """The command lines under `Example:` or `Examples:` of a command's help."""
    found = _EXAMPLE.search(help_text or "")
    return [] if found is None else [line.strip() for line in found[1].splitlines() if line.strip()]


def remember_profile(words: Sequence[str]) -> None:
    """The parser stops at what is wrong: what stands behind it still says which profile is meant.

    An example that is told for the sandbox must not come to be of the account.
    """
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if word == "--":
            return
        if word == "--sandbox":
            options.sandbox = True
        elif name == "--profile" and not options.profile_name:
            options.profile_name = value or "".join(words[number + 1 : number + 2])


def as_bad_input(error: Any) -> BadInput:
    """From an exception of the parser: what is wrong, what was perhaps meant, and an example that works."""
    context = error.ctx if hasattr(error, "ctx") else None
    path = "clorefleet" if context is None else context.command_path
    command = None if context is None else context.command
    kind = type(error).__name__
    more = f"`{path} --help` shows all."
    shown = examples(getattr(command, "help", "") or "")
    # Examples are of the sandbox where they would cost money; here the user's own profile is meant.
    like = f"For instance: `{shown[0].replace(' --sandbox', '')}`. " if shown else ""
    if kind == "NoSuchOption":
        known = [opt for each in command.params for opt in each.opts] if command is not None else []
        return BadInput(
            f"`{path}` has no option {error.option_name[:40]}.",
            remedy=f"{did_you_mean(error.option_name, known)}{more}",
        )
    if kind == "MissingParameter" and error.param is not None:
        return BadInput(f"`{path}` needs {_named(error.param)}.", remedy=f"{like}{more}")
    if kind == "UsageError" and "No such command" in error.message:
        word = error.message.split("'")[1] if "'" in error.message else ""
        return BadInput(
            f"`{path}` has no command “{word[:40]}”.",
            remedy=f"{did_you_mean(word, getattr(command, 'commands', {}))}{more}",
        )
    if kind == "BadParameter" and error.param is not None and error.message.startswith("Input should be "):
        wanted = error.message.removeprefix("Input should be ")
        wanted = _PLAIN.get(wanted.partition(",")[0], wanted).rstrip(".")
        name = error.param.metavar or error.param.name
        if error.param.param_type_name == "option":
            name = max(error.param.opts, key=len)
        return BadInput(f"{name} should be {wanted}.", remedy=f"{like}{more}")
    text = error.format_message().rstrip(".")
    return BadInput(f"{text}.", remedy=f"{like}{more}")


_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "yes or no",
}


def _named(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"a {param.metavar or param.name.upper()}"
    return f"{max(param.opts, key=len)} {param.metavar or ''}".strip()
