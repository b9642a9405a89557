"""The documents hold together: links lead somewhere, command lines can be typed, every page is listed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clorefleet.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(clorefleet [^`\n]+)`")
STAND_INS = {
    "ORDER": "602837", "SERVER": "25756", "NAME": "chat", "M": "glm-5.1", "MODEL": "glm-5.1", "FILE": "file",
    "COMMAND": "status", "N": "1", "F": "2", "AMOUNT": "16/day", "DEPLOYMENT": "chat", "ORG/NAME": "org/name",
    "REPLICAS": "2",
}  # fmt: skip
"""What stands in a text for a value."""
ACTS_AT_ONCE = {"--install-completion", "--show-completion", "--version"}
"""Options that the parser itself obeys while it reads: the first writes into a home."""


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    found = re.findall(r"^#{1,6} (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def lines_of(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines of shell blocks and indented blocks, and calls inside a text; true for these mere mentions."""
    text = page.read_text("utf-8")
    for language, block in FENCE.findall(text):
        if language in ("sh", "shell", "bash", ""):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                yield line, False
    prose = FENCE.sub("", text)
    for line in prose.splitlines():
        if line.startswith("    "):
            yield line, False
    for line in INLINE.findall(re.sub(r"\n(?=[^\n#|`-])", " ", prose)):
        yield line, True


def calls(page: Path) -> list[tuple[str, bool]]:
    """Each call of the program by itself, without what a shell does around it."""
    found = []
    for line, is_mention in lines_of(page):
        bare = re.sub(r"\s#\s.*$|^\s*#.*$", "", line)
        while "[" in bare:  # a form, as in `serve [--seed N]`
            shorter = re.sub(r"\s*\[[^\[\]]*\]", "", bare)
            if shorter == bare:
                break
            bare = shorter
        for part in re.split(r"\s&&\s|\s\|\|?(?:\s|$)|;|\$\(|\)", bare):
            words = re.sub(r"^(?:[A-Z_]+=\S+\s+)*(?:\.venv/bin/)?", "", part.strip())
            if re.match(r"clorefleet(\s|$)", words):
                found.append((re.sub(r"\s*(2>&1|[<>].*)$", "", words), is_mention))
    return list(dict.fromkeys(found))


def parse(line: str) -> Any:
    """The real parser's reading of a call, with nothing run; a group's name alone is its help."""
    words = [STAND_INS.get(word, word) for word in shlex.split(line)[1:]]
    if words and words[0] in ACTS_AT_ONCE:
        return None
    command, context = main.root(), None
    while True:
        if hasattr(command, "commands") and not words:
            return context
        context = command.make_context("clorefleet", words, parent=context)
        if not hasattr(command, "commands") and not isinstance(command, main.LazyGroup):
            return context
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def test_every_page_is_in_the_table_of_contents():
    listed = set(LINK.findall((ROOT / "docs" / "index.md").read_text("utf-8")))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= listed, pages - listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page: Path):
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}; there is {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_can_be_typed(page: Path):
    for line, is_mention in calls(page):
        try:
            parse(line)
        except Exception as error:
            kind = type(error).__name__
            if kind in ("Exit", "NoArgsIsHelpError"):
                continue  # --help
            if is_mention and kind in ("MissingParameter", "BadOptionUsage"):
                continue  # a text may name a command, or its option, without all that it needs
            told = getattr(error, "what", None) or getattr(error, "message", None) or repr(error)
            raise AssertionError(f"{page.name}: `{line}` cannot be typed: {told}") from error


def test_the_check_sees_calls_and_refuses_wrong_ones():
    """The checks above would pass if they saw nothing."""
    assert sum(len(calls(page)) for page in PAGES) > 150
    for line, why in (
        ("clorefleet frobnicate", "frobnicate"),
        ("clorefleet offers --no-such-option", "no-such-option"),
        ("clorefleet hosts history twelve", "integer"),
    ):
        with pytest.raises(Exception, match=why):
            parse(line)
