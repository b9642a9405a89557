"""The text that `clorefleet init` writes."""

from __future__ import annotations

from clorefleet.config.places import example_fleet_file

_STARTER = """\
# What you want kept, and under which ceilings. `clorefleet diff` shows what this would change and cost,
# `clorefleet apply` does it after asking. `clorefleet init --full` writes an example of everything there is:
# schedules, scaling with load, idleness, and ways to be told.

[fleet]
budget = "{budget}"            # over all deployments together: an amount of USD per hour, day or month

[deployments.{name}]
model = "{model}"
budget = "{budget}"            # nothing is rented without a ceiling
replicas = 1
"""


def starter(model: str, budget: str) -> str:
    """A small fleet file. The words were checked by the caller and need no quoting."""
    return _STARTER.format(model=model, budget=budget, name=model.replace(".", "-"))


def full_example() -> str:
    return example_fleet_file().read_text("utf-8")
