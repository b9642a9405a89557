"""Every command that a recipe can lead to is one that its engine's own parser takes."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.errors import BadInput
from clorefleet.domain.recipe import EngineName, EngineSupport, Precision, Recipe
from clorefleet.domain.setup import Setup, Speculation
from clorefleet.engine import engine_of
from clorefleet.engine.base import parse_version
from tests.engine.release import complaints, snapshot
from tests.fleet.builders import plan

RECIPES = load_recipes()
EAGLE = Speculation("EAGLE", 3, 1, 4)


def takes(engine: EngineName, argv: tuple[str, ...]) -> None:
    assert complaints(engine, argv) == [], " ".join(argv)


def setups(recipe: Recipe, support: EngineSupport) -> list[Setup]:
    base = replace(
        plan().setup,
        model=recipe.name,
        engine=support.engine,
        tensor_parallel=2,
        context_tokens=32_768,
        concurrency=3,
    )
    if support.engine is EngineName.KTRANSFORMERS:
        base = replace(base, precision=Precision.FP8)
    full = replace(base, memory_fraction=0.85, kv_dtype="fp8")
    if support.engine is EngineName.LLAMACPP:
        full = replace(base, kv_dtype="q8_0", experts_in_ram=(3, 4), layers_per_gpu=(2, 3))
    elif support.speculative:
        full = replace(full, speculation=EAGLE)
    return [base, full]


@pytest.mark.parametrize(
    "recipe, support",
    [(recipe, support) for recipe in RECIPES.values() for support in recipe.engines],
    ids=lambda value: getattr(value, "name", None) or value.engine.value,
)
def test_a_recipes_command_is_one_that_the_engine_takes(recipe: Recipe, support: EngineSupport):
    for setup in setups(recipe, support):
        launch = engine_of(support.engine).launch(
            setup, support, weights="/root/w", files=("a/m-00001-of-00002.gguf",), port=21_000
        )
        takes(support.engine, launch.argv)


@pytest.mark.parametrize(
    "engine, words, why",
    [
        (EngineName.SGLANG, "sglang.launch_server --mem-fraction 0.8", "--mem-fraction is no option"),
        (EngineName.SGLANG, "sglang.launch_server --tp-size two", "--tp-size wants int, not two"),
        (EngineName.SGLANG, "sglang.launch_server --reasoning-parser glm47", "does not know glm47"),
        (EngineName.SGLANG, "sglang.launch_server --kt-expert-placement-strategy uniform", "is no option"),
        (EngineName.SGLANG, "sglang.launch_server --nsa-prefill-backend fa3", "is no option"),
        (EngineName.VLLM, "vllm serve w --tensor-parallel 2", "--tensor-parallel is no option"),
        (EngineName.VLLM, "vllm serve w --kv-cache-dtype q8_0", "does not know q8_0"),
        (EngineName.VLLM, "vllm serve w --max-model-len", "--max-model-len has no value"),
        (EngineName.LLAMACPP, "llama-server --modle w", "--modle is no option"),
        (EngineName.LLAMACPP, "llama-server --no-mmap", "--no-mmap is no option"),
        (EngineName.LLAMACPP, "llama-server --draft-max 3", "--draft-max was removed"),
        (EngineName.LLAMACPP, "llama-server --ctx-size 32k", "--ctx-size wants int, not 32k"),
    ],
)  # fmt: skip
def test_the_snapshots_refuse_what_the_releases_refuse(engine: EngineName, words: str, why: str):
    assert why in "; ".join(complaints(engine, tuple(words.split())))


@pytest.mark.parametrize("engine", EngineName)
def test_a_snapshot_says_which_release_it_is_and_how_it_was_made(engine: EngineName):
    found = snapshot(engine)
    assert found["version"] and "tools/engine_flags.py" in found["made_by"]
    assert sum(len(row[0]) for row in found["options"]) > 300


KT = replace(
    plan().setup,
    model="glm-5.1",
    precision=Precision.FP8,
    engine=EngineName.KTRANSFORMERS,
    tensor_parallel=2,
    context_tokens=8192,
    concurrency=2,
)
SUPPORT = EngineSupport(
    EngineName.KTRANSFORMERS, "image", (), tool_call_parser="glm47", reasoning_parser="glm45"
)


def test_ktransformers_computes_with_the_cores_that_the_gpus_leave(tmp_path: Path):
    launch = engine_of(KT.engine).launch(KT, SUPPORT, weights="/root/w", files=(), port=21_000)
    takes(EngineName.KTRANSFORMERS, launch.argv)
    lscpu = tmp_path / "lscpu"
    # Two sockets of four cores with two threads each, two NUMA nodes.
    lscpu.write_text(
        "#!/bin/sh\necho '# header'\ncase $1 in -p=NODE) printf '0\\n1\\n0\\n' ;;\n"
        "*) for s in 0 1; do for c in 0 1 2 3 0 1 2 3; do echo $c,$s; done; done ;; esac\n"
    )
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for program in (lscpu, python):
        program.chmod(0o755)
    run = subprocess.run(
        launch.argv, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    words = run.stdout.split()
    assert words[words.index("--kt-cpuinfer") + 1] == "6"
    assert words[words.index("--kt-threadpool-count") + 1] == "2"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    takes(EngineName.KTRANSFORMERS, tuple(words))


def test_ktransformers_says_which_weights_it_cannot_read():
    with pytest.raises(BadInput, match="q4"):
        engine_of(KT.engine).launch(
            replace(KT, precision=Precision.Q4), SUPPORT, weights="/w", files=(), port=21_000
        )


def test_llama_cpp_without_a_gguf_says_so():
    setup = replace(KT, engine=EngineName.LLAMACPP)
    with pytest.raises(BadInput, match="GGUF"):
        engine_of(setup.engine).launch(setup, SUPPORT, weights="/w", files=("a.safetensors",), port=21_000)


@pytest.mark.parametrize(
    "text, version",
    [
        ("0.5.23\n", (0, 5, 23)),
        ("0.19.1rc1.dev3+cu129", (0, 19, 1)),
        ("v1.2", (1, 2)),
        ("unknown version", None),
        ("/usr/bin/llama-server", None),
        ("", None),
        ("9" * 400, None),
        ("1.\x1b[2J", None),
    ],
)
def test_a_version_is_read_or_it_is_none(text: str, version: tuple[int, ...] | None):
    assert parse_version(text) == version
