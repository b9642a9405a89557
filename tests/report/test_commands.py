"""A command inside a sentence is one for the profile that it is shown for."""

from __future__ import annotations

import pytest

from clorefleet.report.commands import for_profile


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("See `clorefleet logs chat`.", "See `clorefleet logs chat --sandbox`."),
        ("`clorefleet diff` shows it, `clorefleet apply` does it.",
         "`clorefleet diff --sandbox` shows it, `clorefleet apply --sandbox` does it."),
        ("`clorefleet ssh chat -- ls -l`", "`clorefleet ssh chat --sandbox -- ls -l`"),
        ("`clorefleet stop chat --sandbox`", "`clorefleet stop chat --sandbox`"),
        ("`clorefleet stop chat --profile work`", "`clorefleet stop chat --profile work`"),
        ("`clorefleet models` lists them", "`clorefleet models` lists them"),
        ("`clorefleet sandbox reset` starts anew", "`clorefleet sandbox reset` starts anew"),
        ("`clorefleet stop --help` shows all", "`clorefleet stop --help` shows all"),
        ("`clorefleet --help` lists them", "`clorefleet --help` lists them"),
        ("clorefleet itself, `kill -9 7`", "clorefleet itself, `kill -9 7`"),
        ("one ` and `clorefleet left open", "one ` and `clorefleet left open"),
    ],
)  # fmt: skip
def test_a_command_names_the_profile_unless_it_looks_at_none(written: str, shown: str):
    assert for_profile(written, " --sandbox") == shown
    assert for_profile(written, "") == written
