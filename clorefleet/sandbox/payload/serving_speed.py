"""How fast the simulated hardware would serve a model. Independent of clorefleet's planner by intent.

One decode step of a batch takes
    bytes from VRAM / usable bandwidth + layers x fixed time per layer + bytes from RAM / usable bandwidth.
The fixed time per layer dominates on large machines; experts kept in RAM dominate wherever there are any.
Constants are fits to published measurements (H100, H200 with NVLink, 12-channel EPYC), not promises.
"""

from __future__ import annotations

from dataclasses import dataclass

VRAM_SHARE = 0.7
"""Of peak bandwidth that matrix-vector products reach."""
RAM_SHARE = 0.35
LAYER_S_ONE_GPU = 0.00011
LAYER_S_NVLINK = 0.00022
LAYER_S_PCIE = 0.00045
LAYER_S_CPU = 0.0002
DRAFT_OVERHEAD = 1.12
ACCEPT_LENGTH = {0: 1.0, 1: 1.75, 2: 2.1, 3: 2.3}
ACCEPT_LENGTH_MAX = 2.5
_PREFILL_FLOPS_PER_BYTE = 70
"""Matrix rate of prefill per byte/s of memory bandwidth: within a factor of two from A100 to B200."""
_PREFILL_CPU_SLOWDOWN = 20.0
TOKENS_PER_S_MAX = 400.0


@dataclass(frozen=True)
class Speed:
    weight_bytes: float
    """Average bytes of one weight."""
    active_weights: int
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    one_expert: int
    """Weights of one expert of one layer."""
    share_in_ram: float
    """Of the experts; for a model without experts, of all layers."""
    gpus_in_parallel: int
    gpu_bandwidth: float
    """Bytes per second of one GPU; 0 = no GPU, everything runs on the CPU."""
    ram_bandwidth: float
    layer_s: float
    draft_tokens: int = 0

    def step_s(self, batch: int) -> float:
        routed_per_token = self.moe_layers * self.experts_per_token * self.one_expert
        if self.experts:
            distinct = self.experts * (1 - (1 - self.experts_per_token / self.experts) ** batch)
            routed = self.moe_layers * distinct * self.one_expert
        else:
            routed = 0.0
        dense = max(0, self.active_weights - routed_per_token)
        if self.experts:
            ram_weights = routed * self.share_in_ram
        else:
            ram_weights = dense * self.share_in_ram
        if not self.gpu_bandwidth:
            ram_weights = dense + routed
        vram_weights = dense + routed - ram_weights
        seconds = self.layers * self.layer_s
        if self.gpu_bandwidth:
            seconds += (
                vram_weights * self.weight_bytes / (self.gpus_in_parallel * self.gpu_bandwidth * VRAM_SHARE)
            )
        return seconds + ram_weights * self.weight_bytes / (self.ram_bandwidth * RAM_SHARE)

    @property
    def accept_length(self) -> float:
        return ACCEPT_LENGTH.get(self.draft_tokens, ACCEPT_LENGTH_MAX)

    def hardware_tokens_per_s(self, batch: int) -> float:
        """Of each of `batch` users, were the words not written by this machine."""
        return self.accept_length / (
            self.step_s(max(1, batch)) * (DRAFT_OVERHEAD if self.draft_tokens else 1.0)
        )

    def tokens_per_s(self, batch: int) -> float:
        """Of each of `batch` users, and what is paced to."""
        return min(TOKENS_PER_S_MAX, self.hardware_tokens_per_s(batch))

    def prefill_s(self, prompt_tokens: int) -> float:
        rate = self.gpus_in_parallel * self.gpu_bandwidth * _PREFILL_FLOPS_PER_BYTE or self.ram_bandwidth
        seconds = 2 * self.active_weights * prompt_tokens / rate
        return seconds * (1 + _PREFILL_CPU_SLOWDOWN * self.share_in_ram)
