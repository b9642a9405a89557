"""What the planner says fits, the stand-ins of SGLang and vLLM load: two memory models that share no code.

The stand-ins get the very commands that the engine modules make.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clorefleet.sandbox
from clorefleet.domain.recipe import EngineName
from clorefleet.domain.setup import Setup
from clorefleet.engine import engine_of
from clorefleet.planner.hardware import Hardware
from clorefleet.planner.search import setups
from tests.planner.machines import RECIPES, hardware, machine

PAYLOAD = Path(clorefleet.sandbox.__file__).parent / "payload"
FACTS = json.loads((PAYLOAD / "models.json").read_text("utf-8"))
CHECKPOINTS = {"fp8": "FP8", "bf16": "BF16", "nvfp4": "NVFP4", "mxfp4": "MXFP4", "fp4": "FP4"}
MACHINES = [
    ("RTX 3090", 24, 1), ("RTX 3090", 24, 4), ("RTX 4090", 24, 8), ("A100-SXM4-80GB", 80, 2),
    ("A100-SXM4-80GB", 80, 8), ("H100", 80, 1), ("H100", 80, 5), ("H100", 80, 8), ("H200", 141, 3),
    ("H200", 141, 6), ("H200", 141, 8), ("RTX PRO 6000", 96, 8), ("B200", 180, 8),
]  # fmt: skip


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, ModuleType]:
    monkeypatch.setenv("SANDBOX_HOME", str(tmp_path / "opt/sandbox"))
    monkeypatch.syspath_prepend(str(PAYLOAD))
    names = ("tensor_engine", "scaled_weights", "sglang_server", "sglang_flags", "vllm_server", "vllm_flags",
             "node_truth")  # fmt: skip
    found = {name: importlib.import_module(name) for name in names}
    monkeypatch.setattr(found["node_truth"], "used_mib", lambda count, of_others=False: [0] * count)
    return found


@pytest.mark.parametrize("model", [name for name in RECIPES if name in FACTS])
def test_the_stand_in_loads_what_the_planner_says_fits(model: str, stand_ins: dict[str, ModuleType]):
    recipe, tried = RECIPES[model], 0
    if all(support.engine is EngineName.LLAMACPP for support in recipe.engines):
        pytest.skip("llama.cpp only")
    for gpu, vram_gib, count in MACHINES:
        shape = hardware(machine(gpu, count, vram_gib, ram_gib=2000))
        for setup, fit in setups(recipe, shape, context_tokens=recipe.floors.context_tokens):
            if setup.engine is EngineName.LLAMACPP or not fit.fits:
                continue
            tried += 1
            _load(setup, model, shape, stand_ins)
    assert tried > 0


def _load(setup: Setup, model: str, shape: Hardware, parts: dict[str, ModuleType]) -> None:
    """Raises the stand-in's `Fatal` where the real engine would stop."""
    recipe = RECIPES[model]
    weights = parts["scaled_weights"].Weights(
        model, CHECKPOINTS[setup.checkpoint], "safetensors", setup.checkpoint_bytes, 1
    )
    launch = engine_of(setup.engine).launch(
        setup, recipe.engine(setup.engine), weights="/w", files=("a.safetensors",), port=1
    )
    argv = list(launch.argv)
    make_load = parts["tensor_engine"].Load
    if setup.engine is EngineName.VLLM:
        server = parts["vllm_server"]
        args = parts["vllm_flags"].parse(argv[argv.index("serve") + 1 :])
        ranks, stages = args.tensor_parallel_size, args.pipeline_parallel_size
        load = make_load(FACTS[model], weights, _truth(shape), ranks=ranks, stages=stages)
        server.check_arguments(args, load)
        fitted = server.fit(args, load)
        assert fitted["kv_tokens"] >= setup.context_tokens * setup.concurrency, (setup, fitted)
        return
    server = parts["sglang_server"]
    has_kt = setup.engine is EngineName.KTRANSFORMERS
    words = argv[argv.index("sglang.launch_server") + 1 :]
    args = parts["sglang_flags"].parser(has_kt=has_kt).parse_args(words)
    load = make_load(FACTS[model], weights, _truth(shape), ranks=args.tp_size, stages=args.pp_size)
    server.check_arguments(args, load)
    pool = server.fit(args, load, server.speculation(args, FACTS[model]))
    assert pool.tokens >= setup.context_tokens * setup.concurrency, (setup, pool.tokens)


def _truth(shape: Hardware) -> dict[str, Any]:
    gpus = [
        {
            "vram_mib": mib,
            "compute_capability": ".".join(map(str, gpu.compute_capability)),
            "nvlink": gpu.has_nvlink,
            "memory_bandwidth_gb_s": gpu.bandwidth_gb_s,
        }
        for gpu, mib in zip(shape.gpus, shape.vram_mib, strict=True)
    ]
    return {"gpus": gpus, "cuda_version": "13.0", "ram_bytes": shape.ram_bytes, "shm_bytes": 64 << 30}
