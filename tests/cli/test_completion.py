"""The shell completes what is there: this machine's deployments, models and GPUs; never by the network."""

from __future__ import annotations

import socket
from decimal import Decimal

import pytest

from clorefleet.cli.main import COMMANDS
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import ServerId
from clorefleet.store.database import open_store
from tests.fleet.builders import NOW, deployment

NOWHERE = "http://192.0.2.1:9/v1"
"""An address that is routed nowhere (RFC 5737): whoever asks it, waits."""


def complete(cli, line: str) -> list[str]:
    words = line.split(" ")
    run = cli(
        _CLOREFLEET_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        CLORE_API_URL=NOWHERE,
    )
    assert run.code == 0 and run.err == ""
    return run.out.split()


@pytest.fixture
def fleet(cli):
    file = cli.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment("chat"))
        tx.put_deployment(deployment("code"))
        tx.add_host_fault(HostFault(ServerId(25756), NOW, "unreachable", Decimal(0)))
    return cli


@pytest.mark.parametrize(
    "line", ["clorefleet stop ", "clorefleet logs ", "clorefleet ssh ", "clorefleet optimize "]
)
def test_deployments_are_named_where_one_is_meant(fleet, line):
    assert complete(fleet, line) == ["chat", "code"]
    assert complete(fleet, f"{line}co") == ["code"]


@pytest.mark.parametrize("word", ["history", "block", "unblock"])
def test_servers_of_which_something_is_remembered_are_named(fleet, word):
    assert complete(fleet, f"clorefleet hosts {word} ") == ["25756"]


def test_profiles_are_named(fleet):
    assert complete(fleet, "clorefleet status --profile ") == ["default"]
    assert complete(fleet, "clorefleet --profile ") == ["default"]


def test_another_profile_has_others(fleet):
    assert complete(fleet, "clorefleet stop --sandbox ") == []
    assert complete(fleet, "clorefleet --sandbox stop ") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clorefleet sta", "status"),
        ("clorefleet plan smo", "smollm2-135m"),
        ("clorefleet models show smo", "smollm2-135m"),
        ("clorefleet models smo", "smollm2-135m"),
        ("clorefleet models ", "smollm2-135m"),
        ("clorefleet models ", "show"),
        ("clorefleet prices 409", "4090"),
        ("clorefleet cost --by day,mo", "day,model"),
        ("clorefleet cost --tz Europe/Berl", "Europe/Berlin"),
        ("clorefleet report --period w", "week"),
        ("clorefleet offers --gpu h20", "h200"),
        ("clorefleet plan glm-5.1 --prefer sp", "speed"),
        ("clorefleet plan glm-5.1 --engine sglang,vl", "sglang,vllm"),
        ("clorefleet plan glm-5.1 --pref", "--prefer"),
        ("clorefleet hosts un", "unblock"),
    ],
)
def test_commands_options_models_gpus_and_words_are_completed(cli, line, expected):
    assert expected in complete(cli, line)


def test_without_a_store_there_is_nothing_and_none_is_made(cli):
    assert complete(cli, "clorefleet stop ") == []
    assert not list(cli.home.rglob("clorefleet.db"))


def test_completion_opens_no_connection(monkeypatch):
    from clorefleet.cli import main, parameter

    def refuse(*_: object) -> None:
        raise AssertionError("completion asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    root = main.root()
    for name in COMMANDS:
        command = root.get_command(None, name)
        for each in getattr(command, "commands", {"": command}).values():
            for param in each.params:
                words = param._custom_shell_complete
                if words is not None and words.__module__ == parameter.__name__:
                    assert isinstance(words(None, param, ""), list)


WITHOUT_NAMES = {"file", "files", "command", "repo", "replicas"}
"""Arguments that the shell completes itself, or that nothing on this machine knows."""


def test_whatever_names_something_of_ours_is_completed():
    from clorefleet.cli import main

    root = main.root()
    bare = {
        f"{name} {each.name} {param.name}"
        for name in COMMANDS
        for each in getattr(
            root.get_command(None, name), "commands", {"": root.get_command(None, name)}
        ).values()
        for param in each.params
        if param.param_type_name == "argument" and param._custom_shell_complete is None
    }
    assert {each for each in bare if each.split()[-1] not in WITHOUT_NAMES} == set()
