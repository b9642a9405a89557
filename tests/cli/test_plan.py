"""`plan` as a user meets it: tables, saved answers, plots, and refusals that say what the budget buys."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest

from clorefleet.cli import plan_view
from clorefleet.cli.requirement import Wishes
from clorefleet.domain.errors import BadInput
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.recipe import Precision
from clorefleet.sandbox.catalogue import Catalogue
from clorefleet.sandbox.coins import CoinRates
from clorefleet.sandbox.listing import MarketplaceDocument
from tests.fleet.builders import plan, report

RATES = CoinRates.at_start(7)


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    catalogue = Catalogue.of_seed(7, server_count=1500, rates=RATES)
    file = tmp_path_factory.mktemp("saved") / "marketplace.json"
    file.write_bytes(MarketplaceDocument(catalogue, 7).with_rented(frozenset()))
    return str(file)


def test_a_saved_answer_is_planned_on_without_any_network(cli, answer):
    run = cli("plan", "glm-5.1", "--budget", "16/day", "--offers", answer, https_proxy="http://127.0.0.1:9")
    assert run.code == 0 and "llama.cpp" in run.out
    assert all(len(line) <= 80 for line in run.out.splitlines())


@pytest.mark.parametrize(
    "name, checkpoint", [("glm-5.1:q4_k_m", "q4_k_m"), ("unsloth/GLM-5.1-GGUF:UD-IQ2_M", "ud_iq2_m")]
)
def test_weights_that_are_named_are_the_only_ones_planned_with(cli, answer, name, checkpoint):
    document = cli("plan", name, "--offers", answer, "--json").json
    assert document["model"] == "glm-5.1" and document["floors"]["checkpoints"] == [checkpoint]
    assert {plan["setup"]["checkpoint"] for plan in document["plans"]} == {checkpoint}


def test_a_model_is_found_by_the_name_that_ollama_has_for_it(cli, answer):
    assert cli("plan", "gpt-oss:120b", "--offers", answer, "--json").json["model"] == "gpt-oss-120b"
    assert cli("models", "show", "gpt-oss:120b", "--json").json["name"] == "gpt-oss-120b"
    wrong = cli("plan", "glm-5.1:q9", "--offers", answer)
    assert wrong.code == 2 and "q4_k_m" in wrong.err


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"servers":1}'])
def test_a_file_that_is_no_answer_is_refused_with_words(cli, tmp_path, content):
    file = tmp_path / "other.json"
    file.write_bytes(content)
    run = cli("plan", "glm-5.1", "--offers", str(file))
    assert run.code == 2 and "cannot plan on" in run.err and "Traceback" not in run.err
    assert cli("plan", "glm-5.1", "--offers", str(tmp_path / "absent.json")).code == 2


def test_below_any_price_the_exit_code_is_3_and_the_words_say_what_the_budget_buys(cli, answer):
    words = ("plan", "glm-5.1", "--budget", "3/day", "--offers", answer)
    run = cli(*words)
    assert run.code == 3 and run.out == ""
    for part in ("Nearest above it, all in:", "hours a day", "would run:", "A budget from $"):
        assert part in run.err
    as_json = cli(*words, "--json")
    assert as_json.code == 3 and as_json.json["plans"] == [] and as_json.json["over_budget"]


def test_the_front_is_shown_though_it_ranks_far_below(cli, answer):
    run = cli("plan", "glm-5.1", "--offers", answer)
    front = [line for line in run.out.splitlines() if re.match(r"\s*→?\+", line)]
    assert len(front) > 1 and any("fp8/sglang" in line for line in front)


def test_replicas_go_to_servers_of_their_own(cli, answer):
    run = cli("plan", "glm-4.7-flash", "--offers", answer, "--replicas", "3", "--budget", "9999/day")
    [line] = [line for line in run.out.splitlines() if line.startswith("3 replicas")]
    assert len(set(re.findall(r"\d{5}", line.split(";")[0]))) == 3
    keys = cli("plan", "glm-4.7-flash", "--offers", answer, "--replicas", "3", "--json").json["replicas"]
    assert len(keys) == 3


def test_the_arithmetic_is_shown_with_its_sources(cli, answer):
    run = cli("plan", "glm-5.1", "--offers", answer, "--explain")
    for part in ("Memory", "Speed", "renter's fee", "paid download", "minimum rental", "assumed", "all in"):
        assert part in run.out, part


def test_the_front_is_drawn_in_the_terminal_and_as_images(cli, answer, tmp_path):
    drawn = cli("plan", "glm-5.1", "--offers", answer, "--plot", "-")
    assert drawn.code == 0 and "USD/day, all in" in drawn.out and "+" in drawn.out
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        file = tmp_path / f"front{suffix}"
        assert cli("plan", "glm-5.1", "--offers", answer, "--plot", str(file)).code == 0
        assert file.read_bytes().startswith(magic)


@pytest.mark.parametrize("target", ["front.pdf", "front", "no/such/folder/front.png"])
def test_a_plot_that_cannot_be_written_is_refused_before_the_market_is_asked(cli, target):
    run = cli("plan", "glm-5.1", "--plot", target)
    assert run.code == 2 and "Traceback" not in run.err


def test_without_the_plotting_library_the_words_name_the_extra(cli, tmp_path):
    (tmp_path / "matplotlib.py").touch()  # present, but not a package that can plot
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text("import sys\nsys.modules['matplotlib'] = None\n", "utf-8")
    run = cli("plan", "glm-5.1", "--plot", "front.png", PYTHONPATH=str(tmp_path))
    assert run.code == 2 and "clorefleet[plots]" in run.err


def test_a_price_that_is_billed_in_a_coin_is_marked(capsys):
    def shown(*plans, wide=False):
        plan_view.show(report(*plans), wide=wide)
        return capsys.readouterr()

    in_coin = plan(8, "3.0", billed=Rate.per_day(300, Currency.CLORE), usd_per_unit=Decimal("0.01"))
    both = shown(plan(7), in_coin)
    assert "$3.15c" in both.out and "$2.10c" not in both.out
    assert "c billed in CLORE: USD at the present rate, which moves." in both.err
    assert "billed in" not in shown(plan(7)).err
    assert "$3.15c" not in shown(in_coin, wide=True).out, "that table has a column for it"


def test_wide_says_more(cli, answer):
    run = cli("plan", "glm-5.1", "--offers", answer, "--wide")
    assert {"PAID IN", "USD/MTOK", "OWNER", "START"} <= set(
        re.split(r"\s{2,}", run.out.splitlines()[0].strip())
    )


def test_deploy_takes_the_same_wishes_as_plan(cli):
    options = [set(re.findall(r"--[a-z-]+", cli(command, "--help").out)) for command in ("plan", "deploy")]
    wishes = {f"--{name.replace('_', '-')}" for name in Wishes.__dataclass_fields__ if name != "model"}
    assert wishes <= options[0] and wishes <= options[1]


@pytest.mark.parametrize("typed, least", [(None, None), (0.0, Decimal(0)), (0.98, Decimal("0.98"))])
def test_no_floor_of_reliability_can_be_asked_for(typed, least):
    """None is the planner's own floor of 0.9."""
    assert Wishes("m", min_reliability=typed).requirement().min_reliability == least


def test_a_reliability_of_0_shows_what_the_usual_floor_leaves_out(cli, answer):
    def counts(*words):
        document = cli("plan", "smollm2-135m", "--offers", answer, "--json", *words).json
        return {each["code"]: each["count"] for each in document["refusals"]}

    assert counts()["reliability"] > 0
    assert "reliability" not in counts("--min-reliability", "0")


def test_deploy_without_a_budget_is_a_usage_error(cli):
    run = cli("deploy", "glm-5.1")
    assert run.code == 2 and "budget" in run.err


@pytest.mark.parametrize(
    "words, tokens",
    [("500k/day", 500_000), ("20M", 20_000_000), ("1.5B/day", 1_500_000_000), ("42", 42)],
)
def test_a_load_is_read(words, tokens):
    assert Wishes("m", load=words).requirement().load_tokens_per_day == tokens


@pytest.mark.parametrize("words", ["0", "-1", "5/hour", "lots", "1e9", "0.0000001", "9" * 30, "٣"])
def test_what_is_no_load_is_refused(words):
    with pytest.raises(BadInput):
        Wishes("m", load=words).requirement()


def test_a_precision_or_better():
    wanted = Wishes("m", precision="fp8+,q4").requirement().precisions
    assert wanted == (Precision.BF16, Precision.FP8, Precision.Q4)
    for bad in ("q9", "+", "fp8++"):
        with pytest.raises(BadInput):
            Wishes("m", precision=bad).requirement()


def test_servers_are_left_out_by_number(cli, answer):
    first = json.loads(cli("plan", "glm-5.1", "--offers", answer, "--json").out)["plans"][0]
    again = cli("plan", "glm-5.1", "--offers", answer, "--json", "--exclude", str(first["server"]["id"])).json
    assert again["plans"][0]["server"]["id"] != first["server"]["id"]
    assert Decimal(again["plans"][0]["price"]["all_in_usd_per_day"]) >= Decimal(
        first["price"]["all_in_usd_per_day"]
    )
    assert cli("plan", "glm-5.1", "--offers", answer, "--exclude", "many").code == 2


def test_spot_only_offers_no_server_on_demand(cli, answer):
    plans = cli("plan", "glm-4.7-flash", "--offers", answer, "--spot-only", "--json").json["plans"]
    assert plans and all(plan["price"]["is_spot"] for plan in plans)
