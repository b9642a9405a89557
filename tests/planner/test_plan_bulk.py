"""The benchmark does what it says: later answers, planned with all that is kept from earlier ones."""

from __future__ import annotations

import pytest

from benchmarks import plan_bulk

SERVERS = 300


def test_an_answer_after_another_is_planned_as_by_one_who_remembers_nothing():
    remembering, fresh = plan_bulk.Planner("glm-5.1"), plan_bulk.Planner("glm-5.1")
    for step in (0, 1, 1):
        body = plan_bulk.document(SERVERS, step=step)
        fresh.forget()
        report, _ = remembering.plan(body)
        assert report == fresh.plan(body)[0] and report.plans and report.offers_seen >= SERVERS


def test_the_next_answer_has_other_prices_and_some_other_servers_for_rent():
    first, later = (plan_bulk.document(SERVERS, step=step) for step in (0, 1))
    assert first != later and first.count(b'"rented":true') != later.count(b'"rented":true')


def test_it_measures_and_prints_a_row(capsys):
    size, _ = plan_bulk.measure(1000, "glm-5.1", rounds=1)
    assert size == 1000
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("floor", "cold", "next", "same", "setups"))


def test_too_few_setups_are_no_measure():
    with pytest.raises(SystemExit, match="setups"):
        plan_bulk.measure(SERVERS, "smollm2-135m", rounds=1)
