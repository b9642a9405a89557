"""KTransformers: SGLang's server (the sglang-kt build) with the experts computed by the host's CPUs.

Flags as of sglang-kt 0.7.2 and its GLM-5.1 tutorial. The experts lie in RAM whole, beside the GPUs; started
only for a setup that names it.
"""

from __future__ import annotations

from dataclasses import replace

from clorefleet.domain.errors import BadInput
from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.recipe import EngineSupport, Precision
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import EngineMetrics, Launch
from clorefleet.engine.diagnosis import Diagnosis
from clorefleet.engine.sglang import SgLang, check_python_package

_METHODS = {Precision.FP8: "FP8", Precision.BF16: "BF16"}
"""CPU kernels that read the published weights as they are; the others want converted ones."""
GPU_EXPERTS_MIN = 1
"""Experts per layer that also lie on the GPUs, where a setup names none [assumed]."""
_CHUNK_TOKENS = 16_384
_GPU_PREFILL_TOKENS = 1024
"""Longer prompts are read with the experts copied to the GPUs, one layer after the other (its tutorial)."""
_ENV = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "SGLANG_ENABLE_JIT_DEEPGEMM": "0"}
# $1 GPUs, then the command: a core for each GPU's process, the others compute; one pool per NUMA node.
_WITH_CORES = """
gpus=$1; shift
count() { lscpu -p="$1" | grep -v '^#' | sort -u | wc -l; }
cores=$(($(count CORE,SOCKET) - gpus))
[ "$cores" -ge 1 ] || cores=1
exec "$@" --kt-cpuinfer "$cores" --kt-threadpool-count "$(count NODE)"
"""


class KTransformers:
    health_path = SgLang.health_path
    proof_path = SgLang.proof_path
    stop_signal = SgLang.stop_signal
    stop_grace_s = SgLang.stop_grace_s

    def __init__(self) -> None:
        self._sglang = SgLang()

    def check_script(self) -> str:
        return f"{check_python_package('kt_kernel')} && {check_python_package('sglang')} > /dev/null"

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        method = _METHODS.get(setup.precision)
        if method is None:
            raise BadInput(
                f"KTransformers does not read {setup.precision} weights.",
                remedy="Use FP8 or BF16, or llama.cpp.",
            )
        chunk = setup.prefill_chunk_tokens or _CHUNK_TOKENS
        setup = replace(setup, prefill_chunk_tokens=chunk)
        served = self._sglang.launch(setup, support, weights=weights, files=files, port=port)
        arguments = [
            "--kt-weight-path", weights,
            "--kt-method", method,
            "--kt-num-gpu-experts", str(max(GPU_EXPERTS_MIN, setup.gpu_experts)),
            "--trust-remote-code",
            "--attention-backend", "flashinfer",
            "--disable-shared-experts-fusion",
            "--kt-expert-placement-strategy", "uniform",
            "--kt-gpu-prefill-token-threshold", str(_GPU_PREFILL_TOKENS),
            "--enable-mixed-chunk",
            "--max-running-requests", str(max(1, setup.concurrency)),
            "--max-total-tokens", str(setup.context_tokens * max(1, setup.concurrency)),
        ]  # fmt: skip
        command = ("sh", "-c", _WITH_CORES, "sh", str(setup.tensor_parallel), *served.argv, *arguments)
        return Launch(command, {**served.env, **_ENV})

    def metrics(self, text: str) -> EngineMetrics:
        return self._sglang.metrics(text)

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return self._sglang.diagnose(log, exit_code)

    def warm_up(self, setup: Setup) -> tuple[dict[str, object], ...]:
        return self._sglang.warm_up(setup)

    def corrections(self, cause: Cause) -> tuple[Correction, ...]:
        return self._sglang.corrections(cause)

    def apply(self, setup: Setup, correction: Correction) -> Setup | None:
        return self._sglang.apply(setup, correction)
