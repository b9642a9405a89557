"""`deploy` on a base image: the engine comes from the package index by a job, and then serves."""

from __future__ import annotations

import pytest

from clorefleet.config.places import recipes_dir
from tests.cli.conftest import CommandLine
from tests.end_to_end.test_deploy import home  # noqa: F401

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(600)]
USUAL = 'image = "lmsysorg/sglang:v0.5.23"\n'
BASE = 'image = "cloreai/ubuntu22.04-cuda12"\npackages = ["sglang==0.5.10"]\ninstall_bytes = 25_000_000_000\n'


def test_a_recipe_that_names_a_base_image_has_its_engine_installed_on_the_server(
    home: CommandLine,  # noqa: F811
):
    """The user's own recipe replaces the project's: SGLang by its pin, and no other image to fall back on."""
    text = (recipes_dir() / "glm-5.1.toml").read_text("utf-8")
    assert text.count(USUAL) == 1 and text.count('min_cuda = "13.0"') == 2
    lines = text.replace(USUAL, BASE).splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith('  { image = "') and "# A base image" not in line]
    folder = home.home / "home" / "config" / "recipes"
    folder.mkdir(parents=True)
    (folder / "glm-5.1.toml").write_text("".join(kept), "utf-8")

    home.timeout_s = 400
    run = home("deploy", "glm-5.1", "--engine", "sglang", "--budget", "900/day", "--sandbox")
    assert run.code == 0, run.err
    assert "a simulated engine" in run.out
    on_node = home("ssh", "glm-5.1", "--sandbox", "--", "sh", "-c", "cat .clorefleet/engines/*/.complete")
    assert on_node.out.strip() == "sglang==0.5.10", on_node.err
    log = "cat .clorefleet/jobs/*-installing-1/log"
    said = home("ssh", "glm-5.1", "--sandbox", "--", "sh", "-c", log).out
    assert "Successfully installed sglang-0.5.10 torch-2.9.1 transformers-5.3.0" in said
    assert "SIMULATED" in home("logs", "glm-5.1", "--engine", "-n", "500", "--sandbox").out
    assert home("stop", "--all", "--sandbox").code == 0
