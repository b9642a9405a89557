"""What is counted for whoever decides how many replicas there are."""

from __future__ import annotations

from datetime import UTC, datetime

from clorefleet.gateway.load import MODELS_MAX, LoadMeter
from clorefleet.gateway.usage import RequestRecord


def record(lease_id: str = "l1", tokens: int | None = 10, **changes: object) -> RequestRecord:
    values: dict[str, object] = {
        "lease_id": lease_id,
        "model": "m",
        "started_at": datetime(2026, 11, 24, tzinfo=UTC),
        "first_byte_s": 0.5,
        "total_s": 1.0,
        "status": 200,
        "prompt_tokens": 7,
        "completion_tokens": tokens,
        "was_streamed": False,
    }
    return RequestRecord(**(values | changes))  # type: ignore[arg-type]


def test_requests_are_summed_by_lease_and_taken_once():
    meter = LoadMeter()
    for each in (record(), record(first_byte_s=1.5), record("l2")):
        meter.count(each)
    first, second = meter.take().replicas
    assert (first.requests, first.prompt_tokens, first.generated_tokens, first.first_byte_s) == (
        2,
        14,
        20,
        1.0,
    )
    assert second.requests == 1 and meter.take().replicas == ()


def test_a_stream_without_counts_is_about_one_token_an_event():
    meter = LoadMeter()
    meter.count(record(tokens=None, events=42, first_byte_s=None))
    (only,) = meter.take().replicas
    assert only.generated_tokens == 42 and only.first_byte_s is None


def test_requests_that_found_no_replica_are_counted_by_model_within_a_bound():
    meter = LoadMeter()
    for number in range(MODELS_MAX + 10):
        meter.count_turned_away(f"m{number}")
    meter.count_turned_away("m0")
    away = meter.take().turned_away
    assert away["m0"] == 2 and len(away) == MODELS_MAX
