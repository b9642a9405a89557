"""Every command that is told works when it is pasted: it parses, and means the same profile."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.cli.test_json import RUNS, VERBATIM, Told, run_all
from tests.test_docs import parse

WHAT = re.compile(r"^Error: .*$", re.MULTILINE)
"""What happened, which may name what was typed; what to do stands below it."""
TOLD = re.compile(r"`(clorefleet [^`\n]+)`|: (clorefleet [^`\n]+?)[.;]?$", re.MULTILINE)
WRONG = {
    "no such deployment": ("stop", "nobody"),
    "no such deployment to ssh to": ("ssh", "nobody"),
    "no such deployment in the books": ("cost", "nobody"),
    "no such model": ("plan", "glm-9.9"),
    "no such server": ("hosts", "history", "1234567"),
    "no such GPU": ("prices", "no-such-gpu"),
    "no such order": ("adopt", "1", "--model", "smollm2-135m"),
    "no number": ("budget", "--per-day", "plenty"),
    "no history": ("simulate", "smollm2-135m", "--prices", "seen", "--weeks", "1"),
    "another model's checks": ("plan", "smollm2-135m", "--check-guide"),
    "nothing fits": ("plan", "glm-5.1", "--budget", "0.01/day"),
    "no budget": ("deploy", "smollm2-135m"),
    "renting stopped": ("budget", "--resume"),
}
"""Words that end in an error or in advice."""
EVERYWHERE = {"models", "recipes", "diagnose", "sandbox"}
FLAG = ["--profile", "work"]


@pytest.fixture(scope="module")
def told(market, tmp_path_factory: pytest.TempPathFactory) -> Told:
    words = {name: run for name, run in RUNS.items() if "--profile" not in run and name not in VERBATIM}
    words |= WRONG
    return run_all(tmp_path_factory.mktemp("told"), market, *FLAG, profile="work", runs=words)


def commands_in(told: Told) -> list[tuple[str, str]]:
    return [
        (name, one or other)
        for name, (_, out, err) in told.items()
        for one, other in TOLD.findall(WHAT.sub("", out + err))
    ]


def test_they_parse(told: Told):
    for name, line in commands_in(told):
        try:
            parse(line)
        except Exception as error:
            told_why = type(error).__name__
            assert told_why in ("MissingParameter", "NoArgsIsHelpError", "Exit"), (
                f"{name} tells `{line}`: {error!r}"
            )


def test_they_mean_the_profile_in_which_they_were_told(told: Told):
    for name, line in commands_in(told):
        words = shlex.split(line)
        if words[1] not in EVERYWHERE and "--help" not in words:
            assert FLAG[1] in words, f"{name} tells `{line}`"


def test_enough_is_told_for_the_two_above_to_say_something(told: Told):
    assert len({line for _, line in commands_in(told)}) >= 15
