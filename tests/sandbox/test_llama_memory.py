"""Where the stand-in of llama.cpp puts a model: the real program's habits, also the awkward ones."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clorefleet.sandbox

PAYLOAD = Path(clorefleet.sandbox.__file__).parent / "payload"
GIB = 1 << 30
Q4_BYTES = 464_715_461_427
"""GLM-5.1 Q4_K_M."""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("SANDBOX_HOME", str(tmp_path / "opt/sandbox"))
    monkeypatch.syspath_prepend(str(PAYLOAD))
    return importlib.import_module("llama_memory")


def server(gpus: int, vram_gib: int, *, ram_gib: int = 512) -> dict[str, Any]:
    gpu = {"vram_mib": vram_gib * 1024, "memory_bandwidth_gb_s": 2000.0, "compute_capability": "9.0"}
    return {"gpus": [gpu] * gpus, "cuda_version": "13.0", "ram_bytes": ram_gib * GIB}


def facts(model: str) -> dict[str, Any]:
    return dict(json.loads((PAYLOAD / "models.json").read_text("utf-8"))[model])


def test_with_early_experts_in_ram_the_last_gpu_runs_out_first(memory: ModuleType):
    args = {"gpu_layers": "99", "n_cpu_moe": 57, "ctx_size": 8192}
    with pytest.raises(memory.OutOfVram) as shortage:
        memory.place(facts("glm-5.1"), Q4_BYTES, args, server(2, 80))
    assert shortage.value.device == 1


def test_a_tensor_split_that_counts_experts_evens_the_gpus_out(memory: ModuleType):
    # 57 layers without experts and a few with them on the first GPU, the rest on the second.
    args = {"gpu_layers": "99", "n_cpu_moe": 57, "ctx_size": 8192, "tensor_split": "67,12"}
    placed = memory.place(facts("glm-5.1"), Q4_BYTES, args, server(2, 80))
    first, second = placed.gpu_bytes
    assert abs(first - second) < 25 * GIB
    assert Q4_BYTES * 0.95 < sum(placed.gpu_bytes) + placed.ram_bytes < Q4_BYTES + 12 * GIB


@pytest.mark.parametrize(
    "rule", [r"blk\.([0-9]|[1-6][0-9]|7[0-7])\.ffn_.*_exps=CPU", "exps=CPU"], ids=["by layer", "all"]
)
def test_an_override_by_tensor_name_keeps_experts_in_ram_as_cpu_moe_does(memory: ModuleType, rule: str):
    given = {"gpu_layers": "99", "ctx_size": 8192}
    by_rule = memory.place(facts("glm-5.1"), Q4_BYTES, given | {"override_tensor": [rule]}, server(1, 80))
    by_flag = memory.place(facts("glm-5.1"), Q4_BYTES, given | {"cpu_moe": True}, server(1, 80))
    assert by_rule == by_flag
    assert by_rule.expert_share_in_ram == 1.0


def test_what_was_not_given_is_lowered_until_it_fits(memory: ModuleType):
    args: dict[str, Any] = {}
    placed = memory.fit(facts("glm-5.1"), Q4_BYTES, args, server(2, 80))
    assert args["ctx_size"] == memory.FIT_CONTEXT_MIN
    assert 0 < args["n_cpu_moe"] <= facts("glm-5.1")["layers"]
    assert all(0 < used <= 80 * GIB for used in placed.gpu_bytes)


@pytest.mark.parametrize("given", [{"gpu_layers": "99"}, {"fit": "off"}], ids=["a layer count", "fit off"])
def test_what_was_given_is_not_lowered(memory: ModuleType, given: dict[str, str]):
    with pytest.raises(memory.OutOfVram):
        memory.fit(facts("glm-5.1"), Q4_BYTES, dict(given), server(2, 80))


def test_a_driver_too_old_for_the_image_leaves_everything_to_the_cpu(memory: ModuleType):
    truth = server(2, 80) | {"cuda_version": "12.2"}
    placed = memory.place(facts("glm-4.7-flash"), 18 * 10**9, {"gpu_layers": "99", "ctx_size": 8192}, truth)
    assert (placed.gpu_bytes, placed.gpus_used, placed.expert_share_in_ram) == ([], 0, 1.0)
