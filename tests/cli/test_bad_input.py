"""Everything that can be wrong before anything is rented: a clear message, an exit code, nothing spent."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest

from clorefleet.cli.main import COMMANDS
from clorefleet.config.places import recipes_dir
from clorefleet.domain.errors import ExitCode


def test_no_key_says_how_to_get_one_and_how_to_go_without(cli):
    run = cli("deploy", "glm-5.1", "--budget", "16/day", "--yes")
    assert run.code == ExitCode.CREDENTIALS
    assert "CLORE_API_KEY" in run.err and "--sandbox" in run.err and "Traceback" not in run.err


def test_a_wrong_key_is_told_as_such_and_never_shown(account):
    run = account("wallet", CLORE_API_KEY="canary-wrong-key-123")
    assert run.code == ExitCode.CREDENTIALS
    assert "canary-wrong-key-123" not in run.out + run.err


def test_an_unreachable_market_says_so(account):
    run = account("offers", CLORE_API_URL="http://127.0.0.1:9/v1")
    assert run.code == ExitCode.MARKET and "Next:" in run.err


def test_an_unknown_model_gets_the_nearest_names(account):
    run = account("deploy", "glm51", "--budget", "16/day", "--yes")
    assert run.code == ExitCode.USAGE and "glm-5.1" in run.err


@pytest.mark.parametrize("budget", ["0", "-3/day", "nan", "free", "16/fortnight", ""])
def test_a_budget_that_is_none_is_refused_with_an_example(account, budget):
    run = account("deploy", "smollm2-135m", f"--budget={budget}", "--yes")
    assert run.code == ExitCode.USAGE and "16/day" in run.err


def test_a_budget_that_is_too_small_says_what_would_do(account):
    run = account("deploy", "glm-5.1", "--budget", "2/day", "--yes")
    assert run.code == ExitCode.NOTHING_FITS
    assert "Nearest above it" in run.err and re.search(r"A budget from \$\d", run.err)
    assert "Nothing was rented" in run.err


def test_without_a_terminal_and_yes_nothing_is_rented(account, market):
    run = account("deploy", "smollm2-135m", "--budget", "16/day")
    assert run.code == ExitCode.NEEDS_CONFIRMATION and "--yes" in run.err
    assert market.control("orders")["orders"] == []
    assert "Nothing is deployed" in account("status").out


@contextmanager
def emptied(market, *currencies):
    balances = market.control("status")["wallets"]
    for currency in currencies:
        market.control("wallet", {"currency": currency, "balance": "0"})
    try:
        yield
    finally:
        for currency in currencies:
            market.control("wallet", {"currency": currency, "balance": balances[currency]})


def test_empty_wallets_are_told_before_anything_is_rented(account, market):
    with emptied(market, "USD-Blockchain", "CLORE-Blockchain", "bitcoin"):
        run = account("deploy", "smollm2-135m", "--budget", "16/day", "--yes")
    assert run.code == ExitCode.FUNDS and "wallet" in run.err and "more is needed" in run.err
    assert market.control("orders")["orders"] == []


def test_one_empty_wallet_is_no_reason_to_refuse(account, market):
    words = ("deploy", "smollm2-135m", "--budget", "16/day", "--dry-run", "--json")
    with emptied(market, "USD-Blockchain", "bitcoin"):
        best = account(*words).json["plans"][0]["price"]
    assert (best["currency"], best["wallet_lacks"]) == ("CLORE", None)


def test_a_recipe_with_a_slip_is_told_with_file_line_and_field(cli):
    folder = cli.home / "home" / "config" / "recipes"
    folder.mkdir(parents=True)
    text = (recipes_dir() / "glm-5.1.toml").read_text("utf-8").replace("heads = 64", "headz = 64")
    (folder / "mine.toml").write_text(text, "utf-8")
    run = cli("models")
    assert run.code == ExitCode.USAGE
    assert re.search(r"mine\.toml:\d+: architecture\.headz: .*did you mean “heads”", run.err)


def test_a_key_file_that_others_can_read_is_refused(cli):
    folder = cli.home / "home" / "config"
    folder.mkdir(parents=True)
    file = folder / "config.toml"
    file.write_text('api_key = "canary-file-key"\n')
    file.chmod(0o644)
    run = cli("wallet")
    assert run.code == ExitCode.USAGE and "chmod 600" in run.err
    assert "canary-file-key" not in run.out + run.err


def test_an_address_that_is_none_is_told_by_the_name_under_which_it_was_set(cli):
    key = {"CLORE_API_KEY": "k" * 32}
    by_variable = cli("wallet", CLORE_API_URL="nonsense", **key)
    assert by_variable.code == ExitCode.USAGE
    assert "Set CLORE_API_URL, in the environment, to an https address" in by_variable.err
    file = cli.home / "home" / "config" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('api_url = "nonsense"\n')
    assert "Set api_url to an https address" in cli("wallet", **key).err


def test_an_unknown_command_and_option_are_told_apart(cli):
    assert "Did you mean offers" in cli("ofers").err
    run = cli("offers", "--gpuu", "4090")
    assert run.code == ExitCode.USAGE and "--gpu" in run.err


@pytest.mark.parametrize("profile", ["../../etc", "A B", ""])
def test_a_profile_never_leaves_the_state_folder(cli, profile):
    run = cli("status", f"--profile={profile}")
    if profile:
        assert run.code == ExitCode.USAGE


def test_errors_are_json_where_json_was_asked_for(cli):
    run = cli("deploy", "glm51", "--budget", "16/day", "--json")
    error = run.json["error"]
    assert run.code == error["exit_code"] == ExitCode.USAGE
    assert set(error) == {"kind", "what", "money", "remedy", "fault", "may_retry", "exit_code"}


def test_stopping_what_is_not_there_changes_nothing(account):
    run = account("stop", "glm-5.1", "--yes")
    assert run.code == ExitCode.USAGE and "Nothing was stopped" in run.err


def test_a_traceback_only_with_debug(cli):
    assert "Traceback" not in cli("models", "nonsense").err
    assert "Traceback" in cli("models", "nonsense", "--debug").err


SUBCOMMANDS = {"recipes": "check", "hosts": "list", "schedule": "show"}
"""One of each group that has no `status`."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_line_of_the_overview(cli, command):
    run = cli(command, "--help")
    inner = cli(command, SUBCOMMANDS.get(command, "status"), "--help").out
    assert run.code == 0 and "--sandbox" in run.out + inner
    assert COMMANDS[command].rstrip(".") in " ".join(run.out.split())


def test_the_documented_exit_codes_are_the_ones_in_use():
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "exit-codes.md"
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page.read_text("utf-8"), re.MULTILINE)
    assert {(int(number), name) for number, name in rows} == {(c.value, c.name) for c in ExitCode}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("simulate", "smollm2-135m", "--weeks", "99"), "--weeks should be less than or equal to 26"),
        (("simulate", "smollm2-135m", "--seed=-1"), "--seed should be greater than or equal to 0"),
        (("hosts", "block", "abc"), "SERVER should be a whole number"),
        (("hosts", "block", "9" * 20), "is no server's number"),
        (("hosts", "unblock", "9" * 20), "is no server's number"),
        (("plan",), "needs a MODEL"),
        (("deploy", "smollm2-135m"), "needs --budget AMOUNT"),
        (("hosts", "hist"), "has no command “hist”"),
        (("stop", "--al"), "Did you mean --all?"),
        (("plan", "glm-5.1", "--prefer", "sped"), "Did you mean speed?"),
        (("plan", "glm-5.1", "--precision", "fp9"), "Did you mean fp8"),
        (("plan", "glm-5.1", "--country", "Germany"), "two letters"),
        (("offers", "--country", "Germany"), "two letters"),
        (("offers", "--sort", "prise"), "Did you mean price"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_slip_is_told_in_one_form_with_what_to_type(cli, words, told):
    run = cli(*words)
    assert run.code == ExitCode.USAGE and run.out == ""
    assert run.err.startswith("Error: ") and "\nNext:  " in run.err and told in run.err
    assert "Usage:" not in run.err and "Traceback" not in run.err


NO_UTF8 = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_terminal_without_our_letters_is_shown_others_and_json_escapes_them(cli):
    shown = cli("models", "calibration", **NO_UTF8)
    assert shown.code == 0 and "?" in shown.out and shown.out.isascii()
    told = cli("models", "calibration", "--json", **NO_UTF8)
    assert told.out.isascii() and told.json == cli("models", "calibration", "--json").json


def test_options_that_contradict_each_other_are_told_once(cli):
    run = cli("status", "--profile", "work", "--sandbox")
    assert run.code == ExitCode.USAGE and "contradict" in run.err and "Traceback" not in run.err


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("smollm2-135m", "--replicas", "99", "--sandbox"), " --sandbox"),
        (("smollm2-135m", "--replicas", "99", "--profile", "work"), " --profile work"),
        (("smollm2-135m", "--replicas", "99", "--profile=work"), " --profile work"),
        (("smollm2-135m", "--replicas", "99"), ""),
    ],
)
def test_an_example_means_the_profile_that_was_named_behind_what_is_wrong(cli, words, flag):
    """Pasted without its --sandbox it would rent for real money."""
    run = cli("deploy", *words)
    assert run.code == 2 and f"`clorefleet deploy smollm2-135m --budget 16/day{flag}`" in run.err
