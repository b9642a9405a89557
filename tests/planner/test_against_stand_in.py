"""What the planner says fits, llama.cpp's stand-in loads: two memory models that share no code.

The stand-in gets the very command that the engine module makes, so a split or an override that the planner
counted on and the command left out shows here too.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clorefleet.sandbox
from clorefleet.domain.recipe import EngineName, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.engine.llamacpp import LlamaCpp
from clorefleet.planner.hardware import Hardware
from clorefleet.planner.search import setups
from tests.planner.machines import RECIPES, hardware, machine

PAYLOAD = Path(clorefleet.sandbox.__file__).parent / "payload"
FACTS = json.loads((PAYLOAD / "models.json").read_text("utf-8"))
MACHINES = [
    (gpu, count, vram_gib, ram_gib)
    for gpu, vram_gib in (("RTX 3080", 10), ("RTX 3090", 24), ("A100-SXM4-80GB", 80), ("H200", 141))
    for count in (1, 2, 3, 4, 6, 8)
    for ram_gib in (64, 512)
]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, ModuleType]:
    """Its memory and its flags."""
    monkeypatch.setenv("SANDBOX_HOME", str(tmp_path / "opt/sandbox"))
    monkeypatch.syspath_prepend(str(PAYLOAD))
    return importlib.import_module("llama_memory"), importlib.import_module("llama_flags")


@pytest.mark.parametrize("model", [name for name in RECIPES if name in FACTS])
def test_the_stand_in_loads_what_the_planner_says_fits(model: str, stand_in: tuple[ModuleType, ModuleType]):
    memory, flags = stand_in
    recipe, tried = RECIPES[model], 0
    if not any(support.engine is EngineName.LLAMACPP for support in recipe.engines):
        pytest.skip("no llama.cpp for this model")
    for gpu, count, vram_gib, ram_gib in MACHINES:
        shape = hardware(machine(gpu, count, vram_gib, ram_gib=ram_gib))
        for setup, fit in setups(recipe, shape, context_tokens=recipe.floors.context_tokens):
            if setup.engine is not EngineName.LLAMACPP or not fit.fits:
                continue
            tried += 1
            args = flags.parse(_words(setup, recipe))
            place = memory.place(FACTS[model], setup.checkpoint_bytes, args, _truth(shape))
            assert place.ram_bytes <= shape.ram_bytes * memory.RAM_USABLE_SHARE, (gpu, count, setup)
    assert tried > 0


def _words(setup: Setup, recipe: Recipe) -> list[str]:
    """What follows `llama-server` on the command line."""
    launch = LlamaCpp().launch(setup, recipe.engine(setup.engine), weights="/w", files=("a.gguf",), port=1)
    argv = list(launch.argv)
    return argv[argv.index("llama-server") + 1 :]


def _truth(shape: Hardware) -> dict[str, Any]:
    gpus = [{"vram_mib": mib} for mib in shape.vram_mib]
    return {"gpus": gpus, "cuda_version": "13.0", "ram_bytes": shape.ram_bytes}
