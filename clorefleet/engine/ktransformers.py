"""KTransformers: SGLang's server (the sglang-kt build) with the experts computed by the host's CPUs.

Flags as of sglang-kt 0.7.2 and its GLM-5.1 tutorial. The experts lie in RAM whole, beside the GPUs; started
only for a setup that names it.
"""

from __future__ import annotations

from clorefleet.domain.errors import BadInput
from clorefleet.domain.recipe import EngineSupport, Precision
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import Diagnosis, EngineMetrics, Launch
from clorefleet.engine.sglang import SgLang, check_python_package

_METHODS = {Precision.FP8: "FP8", Precision.BF16: "BF16"}
"""CPU kernels that read the published weights as they are; the others want converted ones."""
GPU_EXPERTS_MIN = 1
"""Experts per layer that also lie on the GPUs: as few as can be, where a setup does not say how many fit."""
_CHUNK_TOKENS = 16_384
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
        server = self._sglang.launch(setup, support, weights=weights, files=files, port=port).argv
        arguments = [
            "--kt-weight-path", weights,
            "--kt-method", method,
            "--kt-num-gpu-experts", str(max(GPU_EXPERTS_MIN, setup.gpu_experts)),
            "--trust-remote-code",
            "--attention-backend", "flashinfer",
            "--disable-shared-experts-fusion",
            "--chunked-prefill-size", str(_CHUNK_TOKENS),
            "--max-running-requests", str(max(1, setup.concurrency)),
            "--max-total-tokens", str(setup.context_tokens * max(1, setup.concurrency)),
        ]  # fmt: skip
        command = ("sh", "-c", _WITH_CORES, "sh", str(setup.tensor_parallel), *server, *arguments)
        return Launch(command, dict(_ENV))

    def metrics(self, text: str) -> EngineMetrics:
        return self._sglang.metrics(text)

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return self._sglang.diagnose(log, exit_code)

    def corrected(self, setup: Setup, cause: str) -> Setup | None:
        return self._sglang.corrected(setup, cause)
