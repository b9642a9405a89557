"""What the edges are made of, where a profile decides it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.planner.gpus import load_gpus
from clorefleet.wiring import read_calibration
from tests.fleet.builders import lease


@pytest.mark.parametrize("is_sandbox", [True, False], ids=["sandbox", "market"])
def test_predictions_are_corrected_by_engines_that_ran_on_what_they_are_said_to_run_on(
    monkeypatch: pytest.MonkeyPatch, is_sandbox: bool
):
    """A real engine of the sandbox runs on this machine's processor, and a simulated one nowhere."""
    measured = [
        lease(measured_tokens_per_s=speed, engine_is_simulated=is_simulated)
        for speed, is_simulated in ((80.0, True), (7.0, False))
    ]
    monkeypatch.setattr("clorefleet.store.measured.measured_leases", lambda url: measured)
    connection = SimpleNamespace(store_url="", profile=SimpleNamespace(is_sandbox=is_sandbox))
    found = read_calibration(connection, load_recipes(), load_gpus())  # type: ignore[arg-type]
    assert [each.measured_tokens_per_s for each in found.measurements] == [80.0 if is_sandbox else 7.0]
