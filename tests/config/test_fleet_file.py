"""What a fleet file may say, and what each slip is answered with: line, column, and the key that was meant."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.config.fleet_file import load_fleet_file, read_fleet_file
from clorefleet.config.model_name import ModelChoice
from clorefleet.config.toml_file import BadTomlFile, parse_toml
from clorefleet.domain.alert import AlertKind, Command, Email, MailSecurity, Webhook
from clorefleet.domain.deployment import ConsolidatePolicy
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.errors import ConfigError
from clorefleet.domain.money import parse_budget
from clorefleet.domain.recipe import Precision
from clorefleet.domain.report_policy import ReportFormat, ReportPeriod, ReportPolicy
from clorefleet.domain.schedule import Bounds, parse_cron

EXAMPLE = Path(__file__).parents[2] / "fleet.toml"
MINIMAL = """
[deployments.chat]
model = "glm-5.1"
budget = "16/day"
"""


def read(text: str):
    return read_fleet_file("fleet.toml", text.encode(), check_model=ModelChoice)


def complaints(text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(BadTomlFile) as caught:
        read(text)
    return [(p.place.line, p.place.column, p.text) for p in caught.value.problems]


def test_a_model_may_name_its_weights(tmp_path: Path):
    file = tmp_path / "fleet.toml"
    file.write_text(MINIMAL.replace("glm-5.1", "glm-5.1:Q4_K_M"))
    file.chmod(0o600)
    [wish] = load_fleet_file(file).deployments
    assert (wish.requirement.model, wish.requirement.checkpoints) == ("glm-5.1", ("q4_k_m",))


def test_the_example_at_the_top_is_valid_and_shows_every_part():
    found = load_fleet_file(EXAMPLE)
    chat, small = found.deployments
    assert found.budget == parse_budget("60/day")
    assert (chat.replicas, chat.replicas_max, chat.requirement.precisions) == (
        0,
        3,
        (Precision.FP8, Precision.Q4),
    )
    assert [window.name for window in chat.schedule.windows] == ["workday", "nightly batch"]
    assert chat.schedule.windows[0].bounds == Bounds(1, 3) and chat.schedule.zone == "Europe/Berlin"
    assert chat.schedule.exceptions[0].last == date(2027, 1, 1)
    assert chat.scale.time_to_first_token_max == timedelta(seconds=8) and chat.scale.target == Decimal("0.9")
    assert chat.idle.after == timedelta(minutes=30)
    assert small.requirement.spot and not small.is_enabled


def test_the_commented_parts_of_the_example_are_valid_too():
    text = EXAMPLE.read_text("utf-8")
    uncommented = text.replace("\n# [[", "\n[[")
    for key in ("url_env", "host", "from", "to", "user", "password_file", "on", "argv", "lead"):
        uncommented = uncommented.replace(f"\n# {key} =", f"\n{key} =")
    webhook, email, command = read(uncommented).notify.channels
    assert isinstance(webhook, Webhook) and webhook.url_place.env == "TEAM_WEBHOOK"
    assert isinstance(email, Email) and email.security is MailSecurity.STARTTLS and email.port == 587
    assert email.kinds == {AlertKind.FAILURE}
    assert isinstance(command, Command) and command.argv == ("/usr/local/bin/tell-me",)


def test_a_model_and_a_budget_are_enough():
    [chat] = read(MINIMAL).deployments
    assert (chat.replicas, chat.replicas_max, chat.schedule, chat.idle) == (1, None, None, None)


def test_a_model_without_a_recipe_gets_the_nearest_name():
    with pytest.raises(BadTomlFile, match=r"fleet.toml:3:9: .*glm51.*glm-5.1"):
        read_fleet_file("fleet.toml", MINIMAL.replace("glm-5.1", "glm51").encode())


WINDOW = MINIMAL + '[deployments.chat.schedule]\ntimezone = "UTC"\n[[deployments.chat.schedule.windows]]\n'
NOTIFY = MINIMAL + "[[notify.email]]\n"

REPORT = """
[[notify.email]]
name = "mail"
host = "localhost"
from = "a@b"
to = ["a@b"]
[[notify.webhook]]
name = "hook"
url = "https://example.org"

[report]
"""
SLIPS = {
    "an unknown key": (MINIMAL + 'colour = "3"', 5, 1, "known here: budget, consolidate, countries"),
    "a key misspelt": (MINIMAL + "replica = 2", 5, 1, "did you mean “replicas”"),
    "a dash for an underscore": (MINIMAL + "min-context = 4096", 5, 1, "did you mean “min_context”"),
    "a table misspelt": (MINIMAL + "[deployments.chat.shedule]", 5, 19, "did you mean “schedule”"),
    "a top table misspelt": ("[flet]\nbudget = '1/day'", 1, 2, "did you mean “fleet”"),
    "a key misspelt in an inline table": (MINIMAL + "replicas = { mn = 1, max = 2 }", 5, 14, "did you mean “min”"),
    "text for a number": (MINIMAL + 'min_context = "16k"', 5, 15, "must be a whole number"),
    "a boolean for a number": (MINIMAL + "replicas = true", 5, 12, "must be a whole number"),
    "a number for text": (MINIMAL + "gpu = 4090", 5, 7, "must be text in quotes"),
    "a list for a table": (MINIMAL + "idle = []", 5, 8, "must be a table"),
    "too many replicas": (MINIMAL + "replicas = 900", 5, 12, "from 0 to 64"),
    "a budget that is none": ('[fleet]\nbudget = "sixteen"', 2, 10, "cannot read the budget"),
    "no budget": ('[deployments.chat]\nmodel = "glm-5.1"', 1, 14, "budget is missing"),
    "no model": ('[deployments.chat]\nbudget = "16/day"', 1, 14, "model is missing"),
    "a word that is none of the known": (MINIMAL + 'prefer = "price"', 5, 10, "cost, speed, quality, value"),
    "a word misspelt": (MINIMAL + 'prefer = "qualty"', 5, 10, "did you mean “quality”"),
    "an element of a list": (MINIMAL + 'precisions = [\n  "fp8",\n  "fp9"]', 7, 3, "not a precision"),
    "a name that is none": (MINIMAL + '[deployments."Ch at"]\nmodel="a"\nbudget="1/day"', 5, 14, "cannot name"),
    "umlauts before it on the line": (MINIMAL + 'gpu = "ääää" \nidle = { after = "ä" }', 6, 18, "not a length of time"),
    "bounds upside down": (MINIMAL + "replicas = { min = 3, max = 1 }", 5, 29, "at least min"),
    "a time zone misspelt": (
        MINIMAL + '[deployments.chat.schedule]\ntimezone = "Europe/Berln"', 6, 12, "Europe/Berlin",
    ),
    "clock times without a zone": (MINIMAL + "[deployments.chat.schedule]", 5, 19, "timezone is missing"),
    "a window without an end": (WINDOW + 'start = "08:00"\nreplicas = 1', 7, 29, "one of end"),
    "a window with both ends": (
        WINDOW + 'start = "08:00"\nend = "09:00"\nlength = "1h"\nreplicas = 1', 9, 7, "one of end",
    ),
    "a window that says not how many": (WINDOW + 'start = "08:00"\nend = "09:00"', 7, 29, "replicas is missing"),
    "cron with five fields too few": (WINDOW + 'cron = "8"\nlength = "1h"\nreplicas = 1', 8, 8, "not 5"),
    "cron and a start": (
        WINDOW + 'cron = "0 8 * * *"\nstart = "08:00"\nlength = "1h"\nreplicas = 1', 9, 1, "leave out start",
    ),
    "cron every minute": (WINDOW + 'cron = "* * * * *"\nlength = "1h"\nreplicas = 1', 8, 8, "times a day"),
    "an exception without a date": (
        MINIMAL + '[deployments.chat.schedule]\ntimezone = "UTC"\nexceptions = [{ replicas = 0 }]', 7, 15, "date",
    ),
    "an exception to the end of the calendar": (
        MINIMAL + '[deployments.chat.schedule]\ntimezone = "UTC"\n'
        "exceptions = [{ from = 2026-12-01, to = 9999-12-31, replicas = 0 }]", 7, 41,
        "to must be from 2000-01-01 to 2200-01-01, not 9999-12-31",
    ),
    "an exception on the first day of the calendar": (
        MINIMAL + '[deployments.chat.schedule]\ntimezone = "UTC"\n'
        "exceptions = [{ date = 0001-01-01, replicas = 0 }]", 7, 24, "date must be from 2000-01-01",
    ),
    "a floor above the least": (MINIMAL + '[deployments.chat.idle]\nafter = "1h"\nfloor = 2', 7, 9, "above the least"),
    "scaling with nothing to choose": (MINIMAL + "[deployments.chat.scale]", 5, 19, "nothing to choose"),
    "a password in the file": (
        NOTIFY + 'host = "localhost"\nfrom = "a@b"\nto = ["a@b"]\npassword = "x"', 9, 12, "does not belong",
    ),
    "mail in the clear": (
        NOTIFY + 'host = "mail.example.org"\nfrom = "a@b"\nto = ["a@b"]\nsecurity = "none"', 9, 12, "unencrypted",
    ),
    "a header smuggled into an address": (
        NOTIFY + 'host = "localhost"\nfrom = "a@b"\nto = ["a@b\\r\\nBcc: c@d"]', 8, 7, "not an e-mail address",
    ),
    "a webhook in the clear": (
        MINIMAL + '[[notify.webhook]]\nurl = "http://example.org/x"', 6, 7, "https",
    ),
    "a command found by PATH": (MINIMAL + '[[notify.command]]\nargv = ["tell"]', 6, 8, "full path"),
    "a report without a schedule": (REPORT + 'to = ["mail"]', 11, 2, "schedule is missing"),
    "a report to nobody": (REPORT + 'schedule = "0 7 * * *"', 11, 2, "to is missing"),
    "a report to a channel that is none": (
        REPORT + 'schedule = "0 7 * * *"\nto = ["mial"]', 13, 7, "did you mean “mail”",
    ),
    "a report every minute": (REPORT + 'schedule = "* * * * *"\nto = ["mail"]', 12, 12, "at most 24"),
    "a report of a period that is none": (
        REPORT + 'schedule = "0 7 * * *"\nto = ["mail"]\nperiod = "weak"', 14, 10, "did you mean “week”",
    ),
    "a page by webhook": (
        REPORT + 'schedule = "0 7 * * *"\nto = ["hook"]\nformat = "html"', 14, 10, "none of these channels is mail",
    ),
    "a report grouped by what is none": (
        REPORT + 'schedule = "0 7 * * *"\nto = ["mail"]\nby = ["day", "modell"]', 14, 14, "Did you mean “model”",
    ),
    "a report grouped by too much": (
        REPORT + 'schedule = "0 7 * * *"\nto = ["mail"]\nby = ["day", "model", "gpu", "host", "kind"]', 14, 6,
        "at most 4",
    ),
    "an event that is none": (MINIMAL + '[notify]\non = ["failures"]', 6, 7, "Did you mean “failure”"),
}  # fmt: skip


def test_a_report_is_read_with_the_fleets_time_zone():
    text = '[fleet]\ntimezone = "Asia/Tokyo"' + REPORT + 'schedule = "0 7 * * mon"\nto = ["mail", "hook"]'
    found = read(text + '\nperiod = "month"\nformat = "csv"\nby = ["host", "phase"]').report
    assert found == ReportPolicy(
        parse_cron("0 7 * * mon"),
        "Asia/Tokyo",
        ("mail", "hook"),
        ReportPeriod.MONTH,
        ReportFormat.CSV,
        (Dimension.HOST, Dimension.PHASE),
    )
    assert read(MINIMAL).report is None


@pytest.mark.parametrize(("text", "line", "column", "words"), SLIPS.values(), ids=SLIPS)
def test_every_slip_has_its_line_its_column_and_a_way_out(text: str, line: int, column: int, words: str):
    found = complaints(text)
    assert (line, column) in [(a, b) for a, b, _ in found], found
    assert any((a, b) == (line, column) and words in said for a, b, said in found), found


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("[fleet\n", 1, 7), ("a = 1\na = 2\n", 2, 6), ("[fleet]\nbudget = ", 2, 10), ("x = '\x01'", 1, 6)],
)
def test_what_is_not_toml_has_its_place_too(text: str, line: int, column: int):
    [(found_line, found_column, said)] = complaints(text)
    assert (found_line, found_column) == (line, column) and said.startswith("not TOML")


def test_all_complaints_come_at_once_in_the_order_of_the_file():
    found = complaints(MINIMAL + "a = 1\nreplicas = -1\nb = 2")
    assert [line for line, _, _ in found] == [5, 6, 7]


def test_a_file_that_is_not_utf8_or_too_large_is_refused():
    with pytest.raises(BadTomlFile, match=r"f:2:3: it is not UTF-8"):
        parse_toml("f", b"a = 1\n# \xff")
    with pytest.raises(BadTomlFile, match="larger"):
        parse_toml("f", b"#" * 2_000_000)
    with pytest.raises(BadTomlFile):
        parse_toml("f", b"a = " + b"[" * 5000)


def test_control_characters_of_the_file_do_not_reach_the_terminal():
    [(_, _, said)] = complaints('"\\u001b[31mred" = 1')
    assert "\x1b" not in said


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_fleet_file(tmp_path / "fleet.toml")
    assert "clorefleet init" in caught.value.remedy


_KEYS = st.text("ab.\"' é", min_size=1, max_size=5)
_TREES = st.recursive(
    st.integers(0, 9) | st.text("ab\n\"'é", max_size=4) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(_KEYS, _TREES, max_size=4))
def test_every_value_of_any_document_has_a_place_of_its_own(tree: dict):
    import tomlkit

    text = tomlkit.dumps(tree)
    file = parse_toml("f", text.encode())

    def walk(value: object, path: tuple) -> None:
        assert path in file.key_places
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, (*path, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(inner, (*path, index))

    for key, value in file.values.items():
        walk(value, (key,))
    lines = text.split("\n")
    assert all(place.column <= len(lines[place.line - 1]) + 1 for place in file.key_places.values())


def test_an_empty_consolidate_table_takes_the_defaults_and_none_means_never():
    plain, moving = (
        read_fleet_file("fleet.toml", text.encode()).deployments[0]
        for text in (MINIMAL, MINIMAL + "[deployments.chat.consolidate]\nmargin = 0\n")
    )
    assert plain.consolidate is None
    assert moving.consolidate == ConsolidatePolicy(margin=Decimal(0))


@pytest.mark.parametrize(
    "written, spot, only", [("true", True, False), ('"only"', True, True), ("false", False, False)]
)
def test_spot_is_a_flag_or_the_word_only(written: str, spot: bool, only: bool):
    [wish] = read(
        f'[deployments.a]\nmodel = "smollm2-135m"\nbudget = "1/day"\nspot = {written}\n'
    ).deployments
    assert (wish.requirement.spot, wish.requirement.spot_only) == (spot, only)
