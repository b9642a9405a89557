"""Published measurements beside what the planner predicts for them, and the page that shows both.

Nothing here fits anything: a run names the constants of `planner.speed` that were chosen by it (`fits`), and
all others are checks.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from statistics import median
from typing import Any

from clorefleet.domain.gpu import GpuModel
from clorefleet.domain.recipe import Checkpoint, EngineName, Mark, Precision, Recipe, WeightsLayout
from clorefleet.domain.setup import Setup, Speculation
from clorefleet.planner.gpus import GpuTable, gpu_model
from clorefleet.planner.hardware import GIB, Hardware, ram_bandwidth_gb_s
from clorefleet.planner.speed import Load, predict_load

WORST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One published run: machine, setup, and what was measured."""

    name: str
    model: str
    gpu: str
    """A GPU's name as a market would print it, or the id of one of the page's own."""
    gpus: int
    engine: EngineName
    format: str
    precision: Precision
    checkpoint_gb: float
    measured: float
    """Output tokens/s."""
    source: str
    streams: int = 1
    is_total: bool = False
    """`measured` is of all streams together, prompts included; else of one stream's decoding."""
    prompt_tokens: int = 3584
    output_tokens: int = 1024
    drafts: int = 0
    accept_length: float = 0.0
    """0: not published."""
    attention_copies: int = 1
    kv_dtype: str = "bf16"
    cpu: str = ""
    sockets: int = 1
    expert_layers_in_ram: int = 0
    gpu_experts: int = 0
    fits: tuple[str, ...] = ()
    """Constants of `planner.speed` that were chosen by this run."""
    assumed: str = ""
    """What the source does not say and was taken here."""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Unpredicted:
    """A published figure that cannot be set beside a prediction, and why."""

    name: str
    measured: str
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    run: Run
    predicted: float

    @property
    def error(self) -> float:
        """Predicted against measured: -0.2 is a fifth too low."""
        return self.predicted / self.run.measured - 1


@dataclass(frozen=True, slots=True)
class Evidence:
    runs: tuple[Run, ...]
    unpredicted: tuple[Unpredicted, ...]
    gpus: Mapping[str, GpuModel]
    """Such as no market rents, by id."""


@cache
def load_evidence() -> Evidence:
    """The packaged table. Read once."""
    text = (resources.files("clorefleet.data") / "calibration" / "runs.toml").read_text("utf-8")
    document = tomllib.loads(text)
    return Evidence(
        runs=tuple(_run(entry) for entry in document["run"]),
        unpredicted=tuple(Unpredicted(**entry) for entry in document["unpredicted"]),
        gpus={model.gpu_id: model for model in map(gpu_model, document["gpu"])},
    )


def _run(entry: dict[str, Any]) -> Run:
    return Run(
        **entry
        | {
            "engine": EngineName(entry["engine"]),
            "precision": Precision(entry["precision"]),
            "fits": tuple(entry.get("fits", ())),
        }
    )


def rows(evidence: Evidence, recipes: Mapping[str, Recipe], gpus: GpuTable) -> tuple[Row, ...]:
    return tuple(Row(run, _predict(run, evidence, recipes[run.model], gpus)) for run in evidence.runs)


def _predict(run: Run, evidence: Evidence, recipe: Recipe, gpus: GpuTable) -> float:
    hardware = _hardware(run, evidence, gpus)
    is_published_as_it_is = run.precision in (Precision.BF16, Precision.FP8, Precision.FP4)
    layout = WeightsLayout.SAFETENSORS if is_published_as_it_is else WeightsLayout.GGUF
    checkpoint = Checkpoint(
        "run",
        run.precision,
        run.format,
        layout,
        "",
        "",
        ("*",),
        int(run.checkpoint_gb * 1e9),
        Mark.ASSUMED,
        "",
    )
    recipe = replace(recipe, checkpoints=(checkpoint,))
    in_ram = range(recipe.architecture.num_layers)[
        recipe.architecture.num_layers - run.expert_layers_in_ram :
    ]
    setup = Setup(
        model=recipe.name,
        checkpoint="run",
        precision=run.precision,
        layout=layout,
        repo="",
        revision="",
        files=("*",),
        checkpoint_bytes=checkpoint.bytes,
        engine=run.engine,
        image="",
        tensor_parallel=run.gpus,
        context_tokens=run.prompt_tokens + run.output_tokens,
        concurrency=1,
        kv_dtype=run.kv_dtype,
        gpu_experts=run.gpu_experts,
        experts_in_ram=tuple(in_ram) if run.expert_layers_in_ram else (),
        speculation=Speculation("EAGLE", run.drafts, 1, run.drafts + 1) if run.drafts else None,
    )
    load = Load(
        run.streams,
        run.prompt_tokens,
        run.output_tokens,
        accept_length=run.accept_length or None,
        attention_copies=run.attention_copies,
    )
    speed = predict_load(setup, recipe, hardware, load)
    return (speed.throughput_tokens_per_s or 0.0) if run.is_total else speed.decode_tokens_per_s


def _hardware(run: Run, evidence: Evidence, gpus: GpuTable) -> Hardware:
    model = evidence.gpus.get(run.gpu) or gpus.find(run.gpu)
    if model is None:
        raise KeyError(f"{run.name}: no GPU {run.gpu}")
    return Hardware(
        gpus=(model,) * run.gpus,
        vram_mib=(model.vram_mib,) * run.gpus,
        ram_bytes=4000 * GIB,
        disk_free_bytes=4000 * GIB,
        cuda_version=(13, 0),
        # KTransformers has a pool for each NUMA node; llama.cpp gains nothing by a second socket.
        ram_bandwidth_gb_s=ram_bandwidth_gb_s(run.cpu)
        * (run.sockets if run.engine is EngineName.KTRANSFORMERS else 1),
    )


# -- the page


def median_error(found: Iterable[Row]) -> float:
    """Of the errors' sizes."""
    return median(abs(row.error) for row in found)


def worst(found: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(found, key=lambda row: -abs(row.error))[:WORST_NAMED])


def page(evidence: Evidence, found: tuple[Row, ...]) -> str:
    """`docs/calibration.md`."""
    fitted = [row for row in found if row.run.fits]
    checks = [row for row in found if not row.run.fits]
    within = sum(1 for row in checks if abs(row.error) <= 0.25)
    lines = [
        "# Predicted speeds beside published ones",
        "",
        "Made by `clorefleet models calibration --markdown`; a test holds this page to it. The runs are in",
        "`clorefleet/data/calibration/runs.toml`, the model is `clorefleet/planner/speed.py`.",
        "",
        f"{len(found)} runs. Median error {median_error(found):.0%} over all, "
        f"{median_error(checks):.0%} over the {len(checks)} that no constant was chosen by; "
        f"{within} of those within 25 %.",
        "",
        "## Runs by which constants were chosen",
        "",
        "As many constants as runs: these agree by construction, and show nothing more.",
        "",
        *_table(fitted, with_fits=True),
        "",
        "## Checks",
        "",
        *_table(checks),
        "",
        "## The worst",
        "",
        *(f"- **{row.error:+.0%}** {row.run.name}. {row.run.remark}".rstrip() for row in worst(found)),
        "",
        "## What was assumed about runs",
        "",
        *(f"- {row.run.name}: {row.run.assumed}" for row in found if row.run.assumed),
        "",
        "## Not predicted",
        "",
        *(f"- {each.name}, {each.measured}: {each.why} [{each.source}]" for each in evidence.unpredicted),
    ]
    return "\n".join(lines) + "\n"


def _table(shown: list[Row], *, with_fits: bool = False) -> list[str]:
    last = "chose" if with_fits else "source"
    lines = [f"| run | measured | predicted | error | {last} |", "| --- | ---: | ---: | ---: | --- |"]
    for row in shown:
        run = row.run
        end = ", ".join(f"`{name}`" for name in run.fits) if with_fits else run.source
        lines.append(
            f"| {run.name} | {run.measured:,.4g} | {row.predicted:,.4g} | {row.error:+.0%} | {end} |"
        )
    return lines
