"""Correcting predictions by what the user's own replicas measured. Pure: measurements in, factors out.

A measurement says by how much a prediction was off. Errors of one GPU model, engine and precision are alike,
so their mean, as a ratio, corrects what is predicted for the same; shrunk towards no correction while they
are few:

    factor = exp(sum of weight x ln(measured / predicted) / (sum of weight + PRIOR_RUNS))

so one run moves a prediction half of the way, three runs three quarters. Setups that read experts from RAM
are a class of their own, since their speed is the RAM's and not the GPU's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from clorefleet.domain.gpu import GpuModel
from clorefleet.domain.plan import Speed, Term
from clorefleet.domain.recipe import EngineName, Mark, Precision
from clorefleet.domain.setup import Setup

PRIOR_RUNS = 1.0
"""Predictions are as often off by a third as runs of one setup differ from each other by it [assumed]."""
OTHER_MODEL_WEIGHT = 0.25
"""A run of another model tells less about this one: its layers and experts are of other sizes [assumed]."""
RATIO_MAX = 4.0
"""A ratio beyond it is a broken run, or another bottleneck: it counts as this much."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One replica's speed, beside what was predicted for it without any correction."""

    model: str
    gpu_id: str
    """Of the slowest GPU."""
    engine: EngineName
    precision: Precision
    reads_ram: bool
    predicted_tokens_per_s: float
    measured_tokens_per_s: float
    is_simulated: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    measurements: tuple[Measurement, ...] = ()

    @classmethod
    def of(cls, measurements: Iterable[Measurement]) -> Calibration:
        """Only those that a ratio can be made of."""
        usable = (
            each
            for each in measurements
            if 0 < each.predicted_tokens_per_s < math.inf and 0 < each.measured_tokens_per_s < math.inf
        )
        return cls(tuple(usable))

    def correction(self, setup: Setup, gpus: tuple[GpuModel, ...]) -> Correction | None:
        """For `setup` on `gpus`; None when nothing like it was measured."""
        key = (slowest(gpus).gpu_id, setup.engine, setup.precision, setup.reads_ram)
        alike = [
            each
            for each in self.measurements
            if (each.gpu_id, each.engine, each.precision, each.reads_ram) == key
        ]
        if not alike:
            return None
        weights = [1.0 if each.model == setup.model else OTHER_MODEL_WEIGHT for each in alike]
        total = sum(weight * _log_ratio(each) for weight, each in zip(weights, alike, strict=True))
        return Correction(
            factor=math.exp(total / (sum(weights) + PRIOR_RUNS)),
            runs=len(alike),
            same_model=sum(1 for each in alike if each.model == setup.model),
            is_simulated=any(each.is_simulated for each in alike),
        )

    def correct(self, speed: Speed, setup: Setup, gpus: tuple[GpuModel, ...]) -> Speed:
        """`speed` times the correction, with a term that says so; as it is where there is none."""
        found = self.correction(setup, gpus) if self.measurements else None
        if found is None:
            return speed
        together = speed.throughput_tokens_per_s
        factor = Decimal(str(round(found.factor, 3)))
        source = f"{found.text} on {slowest(gpus).name}, {setup.engine}, {setup.precision}"
        return replace(
            speed,
            decode_tokens_per_s=speed.decode_tokens_per_s * found.factor,
            throughput_tokens_per_s=None if together is None else together * found.factor,
            terms=(*speed.terms, Term("corrected by measurement", factor, "factor", Mark.MEASURED, source)),
            mark=Mark.MEASURED,
        )


UNCALIBRATED = Calibration()


@dataclass(frozen=True, slots=True)
class Correction:
    factor: float
    runs: int
    same_model: int
    """Of `runs`, those of the very model."""
    is_simulated: bool

    @property
    def text(self) -> str:
        simulated = "simulated " if self.is_simulated else ""
        return f"{self.runs} {simulated}run(s) of your own, {self.same_model} of this model,"


def slowest(gpus: tuple[GpuModel, ...]) -> GpuModel:
    return min(gpus, key=lambda gpu: (gpu.bandwidth_gb_s, gpu.gpu_id))


def _log_ratio(measurement: Measurement) -> float:
    ratio = math.log(measurement.measured_tokens_per_s / measurement.predicted_tokens_per_s)
    return max(-math.log(RATIO_MAX), min(math.log(RATIO_MAX), ratio))
