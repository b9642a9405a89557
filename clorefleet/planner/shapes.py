"""Hardware shapes, each evaluated once: the setups that fit and keep the floors, and the nearest miss.

A shape is what decides about setups and is shared by thousands of servers: GPUs, their memory, and the newest
CUDA that any image of the recipe asks for and the driver has. RAM and disk are looked at per server after
it, RAM bandwidth only where experts are read from RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from clorefleet.domain.gpu import GpuModel
from clorefleet.domain.plan import Fit, Objective, Requirement, Speed
from clorefleet.domain.recipe import EngineName, Precision, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.calibration import UNCALIBRATED, Calibration
from clorefleet.planner.fit import ROOMY_BYTES, in_room, total_bytes, without_room
from clorefleet.planner.hardware import Hardware, ModelsMemo, OfferedModels
from clorefleet.planner.search import RANKS_MAX, FitMemo, default_precisions, setups
from clorefleet.planner.software import parse_version
from clorefleet.planner.speed import predict, predict_bare

T = TypeVar("T")
SHAPES_MAX = 20_000
"""Shapes that are kept. Hosts can invent kinds without end; a market of real ones has hundreds."""
FITS_MAX = 8 * SHAPES_MAX
"""What the searches found. A shape brings some, which it shares with others."""
_Paced = tuple[Setup, tuple[GpuModel, ...], float]
"""All that a speed depends on: GPUs (one stands for equal ones), and RAM bandwidth where it is used."""
KEPT_MAX = 16
MISSES_MAX = 256
"""Nearest misses kept in a server's own words. One of each reason is shown, mostly the same each time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setup that fits a hardware shape, at its predicted speed."""

    setup: Setup
    fit: Fit
    speed: Speed
    """Without terms: most candidates are no plan, and nobody reads theirs."""
    ram_bytes: int
    """What it needs of both, as `in_room` counts it."""
    disk_bytes: int

    def fit_in(self, hardware: Hardware) -> Fit:
        """`in_room` of a server whose RAM and disk hold it: where all three do, the least margin is told."""
        margin = min(
            self.fit.margin_bytes,
            hardware.ram_bytes - self.ram_bytes,
            hardware.disk_free_bytes - self.disk_bytes,
        )
        return replace(self.fit, margin_bytes=margin)


@dataclass(frozen=True, slots=True)
class Shape:
    """What `recipe` can do on a shape under the requirement's floors."""

    candidates: tuple[Candidate, ...]
    nearest_miss: Fit | None
    """Of all setups that do not fit or are too slow; None when there are none."""


@dataclass(frozen=True, slots=True)
class Floors:
    """All of a requirement that setups and speeds are held against."""

    context_tokens: int
    decode_tokens_per_s: float
    precisions: tuple[Precision, ...]
    engines: tuple[EngineName, ...]
    checkpoints: tuple[str, ...] = ()

    @classmethod
    def of(cls, requirement: Requirement, recipe: Recipe) -> Floors:
        return cls(
            requirement.min_context_tokens or recipe.floors.context_tokens,
            requirement.min_decode_tokens_per_s or recipe.floors.decode_tokens_per_s,
            # Who names weights has said what precision may be.
            requirement.precisions
            or (tuple(Precision) if requirement.checkpoints else default_precisions(recipe)),
            requirement.engines or tuple(EngineName),
            requirement.checkpoints,
        )


class ShapeTable:
    """Shapes of one recipe under one set of floors, evaluated when first asked for and kept."""

    def __init__(self, recipe: Recipe, floors: Floors, calibration: Calibration = UNCALIBRATED) -> None:
        self.recipe, self.floors, self.calibration = recipe, floors, calibration
        self.models = ModelsMemo()
        self._cuda_steps = _cuda_steps(recipe)
        self._shapes: dict[Hardware, Shape] = {}
        self._by_parts: dict[tuple[int, tuple[int, int] | None, float], tuple[OfferedModels, Shape]] = {}
        self._kept: dict[tuple[Objective, int | None], object] = {}
        self._fits: FitMemo = {}
        self._misses: dict[Hardware, Fit | None] = {}
        self._speeds: dict[_Paced, Speed] = {}
        self._told: dict[_Paced, Speed] = {}

    @property
    def evaluated(self) -> int:
        """Shapes so far."""
        return len(self._shapes)

    def shape_of(self, hardware: Hardware) -> Shape:
        """As for `hardware` with RAM and disk enough, and a driver of its class."""
        return self.shape(
            replace(without_room(hardware), cuda_version=self.cuda_class(hardware.cuda_version))
        )

    def shape(self, key: Hardware) -> Shape:
        """Of a class of hardware: roomy, and with a `cuda_class` for its driver."""
        known = self._shapes.get(key)
        if known is None:
            if len(self._shapes) >= SHAPES_MAX:
                self._shapes.clear()
            known = self._shapes[key] = self._evaluate(key)
        return known

    def shape_with(
        self, models: OfferedModels, cuda_class: tuple[int, int] | None, ram_bandwidth_gb_s: float
    ) -> Shape:
        """The same by its parts. `models` are known by identity: comparing them costs more than the rest."""
        key = (id(models), cuda_class, ram_bandwidth_gb_s)
        known = self._by_parts.get(key)
        if known is None or known[0] is not models:
            if len(self._by_parts) >= SHAPES_MAX:
                self._by_parts.clear()
            hardware = Hardware(*models, ROOMY_BYTES, ROOMY_BYTES, cuda_class, ram_bandwidth_gb_s)
            known = self._by_parts[key] = (models, self.shape(hardware))
        return known[1]

    def kept(self, objective: Objective, load: int | None, make: Callable[[], T]) -> T:
        """What `make` gave for this objective and load, from plan to plan."""
        key = (objective, load)
        if key not in self._kept:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            self._kept[key] = make()
        return cast(T, self._kept[key])

    def cuda_class(self, version: tuple[int, int] | None) -> tuple[int, int] | None:
        """The newest CUDA that some image asks for and `version` reaches; (0, 0) for one older than all."""
        if version is None:
            return None
        return max((step for step in self._cuda_steps if step <= version), default=(0, 0))

    def nearest_miss_on(self, hardware: Hardware) -> Fit | None:
        """The nearest miss in the server's own words: its driver, RAM and disk as they are."""
        if hardware not in self._misses:
            if len(self._misses) >= MISSES_MAX:
                self._misses.clear()
            self._misses[hardware] = self._find_nearest_miss_on(hardware)
        return self._misses[hardware]

    def _find_nearest_miss_on(self, hardware: Hardware) -> Fit | None:
        shape = self._with_floors(self._search(without_room(hardware)), hardware)
        miss = nearest_miss(shape, hardware)
        if miss is None or miss.binding != "vram" or hardware.is_mixed:
            return miss
        count = self._gpus_that_do(hardware)
        if count is None:
            return miss
        them = f"{count}x {hardware.gpus[0].name.removeprefix('GeForce ')}"
        return replace(
            miss, cure=miss.cure.replace("more or larger GPUs", f"{them} would do, or larger GPUs")
        )

    def _gpus_that_do(self, hardware: Hardware) -> int | None:
        """The least number of such GPUs that runs it beside the server's own RAM and disk."""
        for count in range(len(hardware.gpus) + 1, RANKS_MAX + 1):
            more = replace(
                hardware, gpus=hardware.gpus[:1] * count, vram_mib=(min(hardware.vram_mib),) * count
            )
            if in_its_room(self.shape_of(more), more):
                return count
        return None

    def _evaluate(self, hardware: Hardware) -> Shape:
        return self._with_floors(self._search(hardware), hardware)

    def _search(self, hardware: Hardware) -> Iterable[tuple[Setup, Fit]]:
        if len(self._fits) >= FITS_MAX:
            self._fits.clear()
        return setups(
            self.recipe,
            hardware,
            context_tokens=self.floors.context_tokens,
            precisions=self.floors.precisions,
            engines=self.floors.engines,
            checkpoints=self.floors.checkpoints,
            memo=self._fits,
        )

    def explained_speed(self, setup: Setup, hardware: Hardware) -> Speed:
        """A candidate's speed with its terms."""
        return self._speed(setup, hardware, predict, self._told)

    def _speed(
        self, setup: Setup, hardware: Hardware, predicted: Callable[..., Speed], kept: dict[_Paced, Speed]
    ) -> Speed:
        """Hundreds of shapes have the same: how many equal GPUs there are is in the setup."""
        gpus = hardware.gpus if hardware.is_mixed else hardware.gpus[:1]
        key = (setup, gpus, hardware.ram_bandwidth_gb_s if setup.reads_ram else 0.0)
        known = kept.get(key)
        if known is None:
            if len(kept) >= SHAPES_MAX:
                kept.clear()
            speed = predicted(setup, self.recipe, hardware)
            known = kept[key] = self.calibration.correct(speed, setup, hardware.gpus)
        return known

    def _with_floors(self, found: Iterable[tuple[Setup, Fit]], hardware: Hardware) -> Shape:
        candidates: list[Candidate] = []
        misses: list[Fit] = []
        for setup, fit in found:
            if self.floors.context_tokens > self.recipe.max_context_tokens:
                misses.append(_too_much_context(fit, self.recipe))
                continue
            if not fit.fits:
                misses.append(fit)
                continue
            speed = self._speed(setup, hardware, predict_bare, self._speeds)
            if speed.decode_tokens_per_s < self.floors.decode_tokens_per_s:
                misses.append(_too_slow(fit, speed, self.floors.decode_tokens_per_s))
                continue
            candidates.append(Candidate(setup, fit, speed, total_bytes(fit.ram), total_bytes(fit.disk)))
        return Shape(tuple(candidates), max(misses, key=nearness, default=None))


class ShapeMemo:
    """Tables kept from one plan to the next, as long as their recipes are the same objects and nothing new
    was measured. Of one thread."""

    TABLES_MAX = 64

    def __init__(self) -> None:
        self._tables: dict[tuple[str, Floors], ShapeTable] = {}

    def table(
        self, requirement: Requirement, recipe: Recipe, calibration: Calibration = UNCALIBRATED
    ) -> ShapeTable:
        key = (recipe.name, Floors.of(requirement, recipe))
        known = self._tables.get(key)
        if known is None or known.recipe is not recipe or known.calibration != calibration:
            if len(self._tables) >= self.TABLES_MAX:
                self._tables.clear()
            known = self._tables[key] = ShapeTable(recipe, key[1], calibration)
        return known


def _cuda_steps(recipe: Recipe) -> frozenset[tuple[int, int]]:
    asked = [
        text
        for support in recipe.engines
        for text in (support.min_cuda, *(variant.min_cuda for variant in support.variants))
    ]
    return frozenset(parse_version(text) for text in asked if text)


# -- one server's RAM and disk


def in_its_room(shape: Shape, hardware: Hardware) -> list[Candidate]:
    """The candidates that the server's own RAM and disk hold, still with the shape's verdicts."""
    ram, disk = hardware.ram_bytes, hardware.disk_free_bytes
    return [each for each in shape.candidates if each.ram_bytes <= ram and each.disk_bytes <= disk]


def nearest_miss(shape: Shape, hardware: Hardware) -> Fit | None:
    """Of what the shape lacks and what the server's RAM and disk lack."""
    verdicts = (in_room(each.fit, hardware) for each in shape.candidates)
    misses = [fit for fit in verdicts if not fit.fits]
    if shape.nearest_miss is not None:
        misses.append(shape.nearest_miss)
    return max(misses, key=nearness, default=None)


_ALMOST = ("speed", "context")
_MEMORY = ("vram", "ram", "disk")


def nearness(fit: Fit) -> tuple[int, int, str]:
    """How near a miss was: fits but is slow, lacks memory (the less the nearer), cannot run at all."""
    kind = 2 if fit.binding in _ALMOST else 1 if fit.binding in _MEMORY else 0
    return kind, fit.margin_bytes, fit.binding


def _too_slow(fit: Fit, speed: Speed, least: float) -> Fit:
    text = f"about {speed.decode_tokens_per_s:.1f} tok/s predicted, {least:g} wanted"
    return replace(
        fit, fits=False, margin_bytes=0, binding="speed", shortfall=text, cure="--min-speed, or faster memory"
    )


def _too_much_context(fit: Fit, recipe: Recipe) -> Fit:
    text = f"the model has {recipe.max_context_tokens:,} tokens of context at most"
    return replace(
        fit, fits=False, margin_bytes=0, binding="context", shortfall=text, cure="a smaller --context"
    )
