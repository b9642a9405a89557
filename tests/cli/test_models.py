"""`models` and `recipes`: the short forms, a draft from the sandbox's hub, and checks that fail loudly."""

from __future__ import annotations

from pathlib import Path

import pytest

from clorefleet.config.places import recipes_dir
from tests.cli.conftest import CommandLine


def test_a_bare_name_shows_the_model(cli: CommandLine):
    shown = cli("models", "glm-5.1")
    assert shown.code == 0 and shown.out == cli("models", "show", "glm-5.1").out
    assert "Not with xllm" in shown.out and "Hosted API: Z.ai, $1.40" in shown.out
    assert cli("models", "--json").json["models"] and cli("models", "show", "glm-5.1", "--json").json["name"]


def test_the_project_s_own_recipes_pass_and_a_broken_one_fails(cli: CommandLine, tmp_path: Path):
    assert cli("recipes", "check").code == 0
    text = (recipes_dir() / "glm-5.1.toml").read_text("utf-8")
    (tmp_path / "odd.toml").write_text(text.replace("one_expert = 37_748_736", "one_expert = 1_000"), "utf-8")
    (tmp_path / "slip.toml").write_text(text.replace("heads = 64", "headz = 64"), "utf-8")
    odd = cli("recipes", "check", str(tmp_path / "odd.toml"))
    assert odd.code == 2 and "parameters.one_expert" in odd.out
    slip = cli("recipes", "check", str(tmp_path / "slip.toml"), "--json")
    assert slip.code == 2 and slip.json["findings"][0]["where"] == "architecture.headz"
    assert cli("recipes", "check", "--strict").code == 2
    assert cli("recipes", "check", "nowhere.toml").code == 2


def test_the_calibration_prints_its_page(cli: CommandLine):
    page = cli("models", "calibration", "--markdown")
    assert page.out == (recipes_dir().parent / "docs" / "calibration.md").read_text("utf-8")
    assert cli("models", "calibration", "--json").json["median_error"] <= 0.25


def test_a_draft_replaces_no_recipe_without_a_word(cli: CommandLine):
    """Refused before the hub is asked: there is none here."""
    file = cli.home / "home/config/recipes/glm-5.1.toml"
    words = ("models", "add", "unsloth/GLM-5.1-GGUF", "--config-from", "zai-org/GLM-5.1")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    refused = cli(*words, **nowhere)
    assert refused.code == 2 and not file.exists()
    assert "clorefleet's own recipe glm-5.1 (zai-org/GLM-5.1) would be replaced" in refused.err
    assert "--name NAME" in refused.err and "--force" in refused.err
    assert cli(*words, "--name", "glm-5.1-gguf", **nowhere).code == 6
    for odd in ("../glm", "GLM", ".toml"):
        slip = cli(*words, "--name", odd, **nowhere)
        assert slip.code == 2 and "cannot be a recipe's name" in slip.err
    file.parent.mkdir(parents=True)
    file.write_text((recipes_dir() / "glm-5.1.toml").read_text("utf-8"), "utf-8")
    assert f"of yours already: {file}" in cli(*words, **nowhere).err


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_draft_from_the_sandboxs_hub_can_be_planned(cli: CommandLine):
    try:
        words = ("models", "add", "Qwen/Qwen3-30B-A3B")
        named = cli(*words, "--name", "my-qwen3", "--sandbox")
        assert named.code == 0 and "plan my-qwen3" in named.err, named.err
        drafted = cli(*words, "--force", "--sandbox")
        assert drafted.code == 0 and "replaces the project's own" in drafted.err, drafted.err
        assert cli("recipes", "check", str(cli.home / "home/config/recipes/qwen3-30b-a3b.toml")).code == 0
        again = cli(*words, "--sandbox")
        assert again.code == 2 and "--force" in again.err
        assert cli("models", "add", "no/such", "--sandbox").code == 6
        assert cli("models", "add", "nonsense", "--sandbox").code == 2
        planned = cli("plan", "qwen3-30b-a3b", "--sandbox", "--json")
        assert planned.code in (0, 3) and planned.json["offers_seen"] > 0
    finally:
        cli("sandbox", "stop")
