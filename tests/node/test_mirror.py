"""A mirror of the hub that the user named is what rented servers fetch from and time their line to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.config.settings import DEFAULT_HUB_URL
from clorefleet.domain.lease import Phase
from clorefleet.node.operator import NodeOperator
from clorefleet.node.weights import mirror_of
from tests.node.rented import rack_of, recording_hub, rent, sync, until


def test_servers_fetch_and_measure_from_the_mirror_and_not_from_the_hub_they_know(tmp_path: Path):
    (tmp_path / "hubs").mkdir()
    with recording_hub(tmp_path / "hubs") as own, recording_hub(tmp_path / "hubs") as mirror:
        operator = NodeOperator(
            tmp_path / "state",
            hub_url=mirror.url,
            recipes=load_recipes(),
            allow_loopback=True,
            known_answers=(),
            mirror=mirror.url,
        )
        with rack_of(own, tmp_path) as rack:
            lease, order = rent(rack, operator, 1)
            probing = replace(lease, phase=Phase.PROBING)
            assert until(lambda: operator.look(probing, order), lambda view: view.facts is not None).facts
            sync(operator, lease, order)
        operator.close()
    assert not own.asked
    assert [path for path, _ in mirror.asked if "/resolve/" in path]


@pytest.mark.parametrize(
    "hub_url, mirror",
    [
        (DEFAULT_HUB_URL, ""),
        ("https://hub.example.org", "https://hub.example.org"),
        ("http://127.0.0.1:8000", ""),
        ("http://localhost:8000", ""),
        ("https://me:secret@hub.example.org", ""),
    ],
)
def test_an_address_that_is_this_machines_or_has_a_password_is_not_given_away(hub_url: str, mirror: str):
    assert mirror_of(hub_url) == mirror
