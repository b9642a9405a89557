"""The guide's machines: verdicts as in serving facts, sections 2.5 and 8, and the page is what is made."""

from __future__ import annotations

from pathlib import Path

import pytest

import clorefleet
from clorefleet.config.recipes import load_calibration_recipes
from clorefleet.planner import guide
from clorefleet.planner.gpus import load_gpus

GLM, GPUS = load_calibration_recipes()["glm-5.1"], load_gpus()
PAGE = Path(clorefleet.__file__).parent.parent / "docs" / "guide-check.md"


def test_the_page_is_what_the_command_makes():
    assert PAGE.read_text("utf-8") == guide.page(GLM, GPUS)


@pytest.mark.parametrize("machine", guide.MACHINES, ids=lambda machine: machine.title)
def test_none_of_the_guides_machines_runs_what_it_promises(machine):
    """Facts 8: FP8 on 2x and 8x H100, BF16 on 4x A100 and 8x H200, Q4 in 80 GB + 256 GB: impossible."""
    assert guide.verdict(machine, GLM, GPUS) == "**impossible**"


@pytest.mark.parametrize("title, holds", [("FP8 weights", False), ("BF16 weights", True)])
def test_its_sizes(title, holds):
    """Facts 8: FP8 is 756 GB and not 860; BF16 is 1.508 TB."""
    [requirement] = [each for each in guide.REQUIREMENTS if each.title == title]
    assert guide.size_verdict(requirement, GLM).startswith("true") is holds


def test_offloaded_fp8_is_as_slow_as_the_facts_say():
    """Facts 8: over 600 GB of RAM; 10 to 13 tok/s on 12-channel DDR5-6400, 3 to 5 on 8-channel DDR4."""
    [line] = [each for each in guide.page(GLM, GPUS).splitlines()
              if "experts in" in each and "ktransformers, about 10 tok/s" in each]  # fmt: skip
    assert "1,024 GiB" in line and "3.7 tok/s at 205 GB/s" in line
