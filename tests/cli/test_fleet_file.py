"""`init`, `diff` and `apply` as a user meets them; nothing here comes to rent."""

from __future__ import annotations

from clorefleet.domain.errors import ExitCode

OFF = """
[deployments.chat]
model = "smollm2-135m"
budget = "16/day"
enabled = false
"""


def write(cli, text: str, name: str = "fleet.toml") -> None:
    (cli.home / name).write_text(text, "utf-8")


def test_what_init_writes_can_be_read_and_is_never_written_over(account):
    assert account("init", "--model", "glm-5.1", "--budget", "900/day").code == 0
    text = (account.home / "fleet.toml").read_text("utf-8")
    again = account("init")
    assert again.code == ExitCode.USAGE
    assert "already" in again.err and (account.home / "fleet.toml").read_text("utf-8") == text
    assert account("init", "--full", "--force").code == 0
    assert account("diff").code == ExitCode.OK


def test_init_knows_models_and_budgets(account):
    assert account("init", "--model", "glm51").code == ExitCode.USAGE
    assert account("init", "--budget", "free").code == ExitCode.USAGE
    assert not (account.home / "fleet.toml").exists()


def test_a_slip_in_the_file_is_shown_with_its_place_and_spends_nothing(account):
    write(account, '[deployments.chat]\nmodl = "smollm2-135m"\nbudget = "16/day"\n')
    for command in ("diff", "apply"):
        run = account(command)
        assert run.code == ExitCode.USAGE
        assert "fleet.toml:2:1: there is no key “modl” here; did you mean “model”?" in run.err
        assert "Nothing was changed" in run.err


def test_without_a_file_the_way_to_one_is_shown(account):
    run = account("diff")
    assert run.code != 0 and "clorefleet init" in run.err


def test_diff_shows_the_cost_and_changes_nothing(account):
    write(account, OFF.replace("enabled = false", "replicas = 2") + '[fleet]\nbudget = "30/day"\n')
    run = account("diff")
    assert run.code == 0 and "+ chat is new" in run.out and "[estimated]; never above $16/day" in run.out
    assert "at most $16.00 a day" in run.out
    assert account("status").out.startswith("Nothing is deployed")
    assert account("diff", "--json").json["changes"][1]["kind"] == "create"


def test_the_commands_that_are_told_apply_the_file_that_was_shown(account):
    """Pasted without it, `apply` would take ./fleet.toml."""
    for name, words in (("example.toml", "--file example.toml"), ("my fleet.toml", "--file 'my fleet.toml'")):
        made = account("init", "--full", "--file", name)
        assert f"`clorefleet diff {words}`" in made.err and f"`clorefleet apply {words}`" in made.err
        write(account, OFF.replace("enabled = false", ""), name)
        assert f"`clorefleet apply {words}` does it" in account("diff", "--file", name).err
    write(account, OFF.replace("enabled = false", ""))
    assert "`clorefleet apply` does it" in account("diff").err
    assert "`clorefleet apply --take chat` does it" in account("diff", "--take", "chat").err


def test_apply_without_a_terminal_needs_yes_and_writes_nothing(account):
    write(account, OFF.replace("enabled = false", ""))
    run = account("apply")
    assert run.code == ExitCode.NEEDS_CONFIRMATION and "--yes" in run.err
    assert account("status", "--all").out.startswith("Nothing is deployed")


def test_replicas_that_the_budget_cannot_hold_are_told_and_not_written(account):
    write(account, OFF.replace("enabled = false", "replicas = 16").replace("16/day", "1/day"))
    shown = account("diff")
    assert shown.code == 0 and "16 replicas do not fit in the budget of $1/day; about $" in shown.out
    run = account("apply", "--yes")
    assert run.code == ExitCode.BUDGET and "chat: 16 replicas do not fit" in run.err
    assert account("status", "--all").out.startswith("Nothing is deployed")


def test_only_a_deployment_of_the_file_can_be_given_to_it(account):
    write(account, OFF)
    run = account("apply", "--take", "other")
    assert run.code == ExitCode.USAGE and "other" in run.err


def test_a_schedule_is_looked_for_by_name(account):
    run = account("schedule", "show", "chat")
    assert run.code == ExitCode.USAGE and "no deployment “chat”" in run.err
    assert "No deployment has a schedule" in account("schedule", "show").out


def test_simulate_reads_the_file_that_is_there_and_says_what_it_leaves_out(account):
    without = account("simulate")
    assert without.code != 0 and "clorefleet init" in without.err
    write(account, OFF)
    run = account("simulate")
    assert run.code == ExitCode.USAGE and "no deployment to simulate" in run.err and "chat" in run.err
