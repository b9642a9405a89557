"""The pages that are made from the commands are as the commands are, and every example can be typed."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from clorefleet.cli import main
from clorefleet.cli.usage import examples
from tools import reference

LEAVES = dict(reference.leaf_commands())


def parse(line: str) -> Any:
    """The real parser's reading of a line, with nothing run."""
    words = shlex.split(line.split(" | ")[0] if line.startswith("clorefleet") else line.split(" | ")[-1])
    assert words[0] == "clorefleet"
    words = [word for word in words[1:] if word not in ("2>&1", ">")]
    command, context = main.root(), None
    while True:
        context = command.make_context("clorefleet", list(words), parent=context, resilient_parsing=False)
        if not hasattr(command, "commands") and not isinstance(command, main.LazyGroup):
            return context
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def test_the_pages_are_as_the_commands_are():
    assert reference.stale() == [], "write them anew: python tools/reference.py"


def test_every_command_has_a_document_or_says_why_not():
    assert reference.undocumented() == [], "say in clorefleet/cli/documents.py what its --json prints"


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_shows_examples_that_parse(name: str):
    shown = examples(LEAVES[name].help)
    assert shown, f"{name} shows no example"
    for line in shown:
        assert f"clorefleet {name.partition(' ')[0]}" in line
        parse(line)


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_and_argument_says_what_it_is(name: str):
    for param in LEAVES[name].params:
        assert param.help, f"{name}: {param.opts} has no help"
