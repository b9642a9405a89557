"""The version stands in one place, and the changelog's newest heading is of it."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from clorefleet import __version__

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## (\d+\.\d+\.\d+) \((unreleased|\d{4}-\d\d-\d\d)\)$", re.MULTILINE)


def test_the_changelog_begins_with_this_version():
    found = HEADING.findall((ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert found and found[0][0] == __version__
    numbers = [tuple(map(int, version.split("."))) for version, _ in found]
    assert numbers == sorted(numbers, reverse=True)
    assert all(when != "unreleased" for _, when in found[1:])


def test_every_heading_of_a_version_has_the_agreed_form():
    headings = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert len(headings) == len(HEADING.findall((ROOT / "CHANGELOG.md").read_text("utf-8")))


def test_the_package_takes_its_version_from_the_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "clorefleet/__init__.py"
    assert metadata.version("clorefleet") == __version__
