"""Which of many offers need an exact look, and how many of the others are refused for what.

`sieve` decides in columns of floats what it is sure of: an offer is passed over only if it is certainly
refused for a certain reason and is not the nearest of that reason, or certainly ranks below more plans than
are kept and off the front. Whatever lies within the error of a float, or is odd, gets the exact look; so the
answer of `plan_requirement` is the same with and without. `tests/planner/test_sieve.py` holds that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from clorefleet.domain.download import BYTES_PER_MBIT, EFFICIENCY, UNKNOWN_DISK_MB_S, UNKNOWN_LINE_MBIT_S
from clorefleet.domain.money import Currency, worst_rate_factor
from clorefleet.domain.offer import MarketView, gpu_summary
from clorefleet.domain.offer_columns import COLUMN_CURRENCIES, BulkOffers, OfferColumns
from clorefleet.domain.plan import Objective, Requirement
from clorefleet.domain.recipe import Recipe
from clorefleet.planner.cost import (
    BOOT_S,
    EXPECTED_LIFE_S,
    FIRST_HOURS,
    SPOT_INTERRUPTIONS_PER_DAY,
    WARM_UP_S,
    load_of,
    usd_per_unit,
)
from clorefleet.planner.fit import IMAGE_BYTES
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.hardware import ram_bandwidth_gb_s
from clorefleet.planner.preference import QUALITY, SAME_PRICE_SHARE, setup_parts
from clorefleet.planner.shapes import SHAPES_MAX, Shape, ShapeTable, nearness

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

T = TypeVar("T")
SIEVED_FROM = 200
"""Fewer offers are looked at one by one: the columns would cost more."""
_REL, _ABS_USD = 1e-9, 5e-5
"""Error of a cost in floats. The exact terms are rounded up to a millionth of a dollar each."""
_BYTES = 16.0
"""Error of RAM and disk sizes in floats, and of two of them compared."""
_LIFE_S = 2.0
"""Error of a longest rental, and of a start compared with it."""
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Sieved:
    positions: tuple[int, ...]
    """Offers that need the exact look, in their order, which tells apart servers of one number."""
    counts: dict[str, int]
    """All others, by the code of their refusal. Plans far down the ranking are in neither."""


@dataclass(frozen=True, slots=True)
class SieveLimits:
    """What the exact ranking keeps, and the floors it sets."""

    plans: int
    over_budget: int
    reliability: float
    download_s: float


def sieve(
    offers: BulkOffers,
    requirement: Requirement,
    market: MarketView,
    gpus: GpuTable,
    shapes: ShapeTable,
    currencies: tuple[Currency, ...],
    limits: SieveLimits,
) -> Sieved:
    return _Sieve(offers.columns, requirement, market, gpus, shapes, currencies, limits).run()


class _Sieve:
    """Rows are free servers, by their place in the columns. `code` says what a row is refused for."""

    def __init__(
        self,
        columns: OfferColumns,
        requirement: Requirement,
        market: MarketView,
        gpus: GpuTable,
        shapes: ShapeTable,
        currencies: tuple[Currency, ...],
        limits: SieveLimits,
    ) -> None:
        import numpy as np

        self.np = np
        self.columns, self.requirement, self.market = columns, requirement, market
        self.gpus, self.shapes, self.currencies, self.limits = gpus, shapes, currencies, limits
        size = len(columns.free)
        self.names: list[str] = []
        self.code = np.full(size, -1)
        self.distance = np.zeros(size)
        self.exact: Flags = columns.is_odd.copy()
        """To be looked at whatever the columns say."""
        self.keep: Flags = np.zeros(size, dtype=bool)
        """Sorted out rightly, and still to be looked at: plans, and the nearest of each refusal."""

    def run(self) -> Sieved:
        np, columns = self.np, self.columns
        rented = columns.rented
        if self.requirement.excluded_servers:
            excluded = np.asarray(
                [number for number in self.requirement.excluded_servers if number < 1 << 63], dtype=np.int64
            )
            self.exact |= np.isin(columns.ids, excluded)
            is_excluded = np.isin(columns.all_ids[rented], excluded)
        else:
            is_excluded = np.zeros(len(rented), dtype=bool)
        if self.requirement.cuda_found:
            # Their columns have what was claimed.
            measured = [each.server_id for each in self.requirement.cuda_found if each.server_id < 1 << 63]
            self.exact |= np.isin(columns.ids, np.asarray(measured, dtype=np.int64))
        self._filter()
        rows = np.flatnonzero((self.code < 0) & ~self.exact)
        if len(rows):
            self._fit(rows)
        self._keep_nearest()
        looked_at = self.keep | self.exact
        counts = np.bincount(self.code[(self.code >= 0) & ~looked_at], minlength=len(self.names)).tolist()
        found = {name: count for name, count in zip(self.names, counts, strict=True) if count}
        positions = columns.free[looked_at].tolist() + rented[is_excluded].tolist()
        plainly_rented = rented[~is_excluded]
        if len(plainly_rented):
            ids = columns.all_ids[plainly_rented]
            lowest = np.flatnonzero(ids == ids.min())
            positions.extend(plainly_rented[lowest].tolist())
            if len(plainly_rented) > len(lowest):
                found["rented"] = len(plainly_rented) - len(lowest)
        return Sieved(tuple(sorted(positions)), found)

    def _refuse(self, rows: Ints | Flags, name: str) -> None:
        """Refused for `name`, where nothing came before."""
        if name not in self.names:
            self.names.append(name)
        chosen = self.np.zeros(len(self.code), dtype=bool)
        chosen[rows] = True
        self.code[chosen & (self.code < 0)] = self.names.index(name)

    # -- filters, in the order of `refused_by_filters`

    def _filter(self) -> None:
        np, columns, wish = self.np, self.columns, self.requirement
        size = len(self.code)
        has_gpus = np.array([bool(kind) for kind in columns.gpu_kinds] or [False])[columns.gpu_of]
        no_price = np.isnan(columns.on_demand).all(axis=1)
        missing = ~has_gpus | np.isnan(columns.ram_bytes) | np.isnan(columns.disk_bytes)
        worth = columns.on_demand * self._usd_per_unit()
        is_worth = ~np.isnan(worth).all(axis=1) & has_gpus
        low = np.where(np.isnan(worth), np.inf, worth).min(axis=1, initial=np.inf)
        high = np.where(np.isnan(worth), -np.inf, worth).max(axis=1, initial=-np.inf)
        outside = is_worth & ((low < columns.band_low * (1 - _REL)) | (high > columns.band_high * (1 + _REL)))
        inside = (low > columns.band_low * (1 + _REL)) & (high < columns.band_high * (1 - _REL))
        flagged = no_price | missing | outside
        self.exact |= is_worth & ~flagged & ~inside
        self._refuse(flagged, "flagged")
        if wish.gpu:
            word = wish.gpu.lower()
            named = np.array([word in gpu_summary(kind).lower() for kind in columns.gpu_kinds] or [False])
            self._refuse(~named[columns.gpu_of], "gpu")
        if wish.countries:
            here = np.array([code in wish.countries for code in columns.countries] or [False])
            self._refuse(~here[columns.country_of], "country")
        least, told = self.limits.reliability, columns.reliability
        unsure = np.abs(told - least) < 1e-12
        self.exact |= unsure & (self.code < 0)
        self._refuse(np.isnan(told) | (told < least), "reliability")
        self.models = [self.shapes.models.models(kind, self.gpus) for kind in columns.gpu_kinds]
        known = np.array([models is not None for models in self.models] or [False])
        self._refuse(~known[columns.gpu_of] if size else np.zeros(0, dtype=bool), "gpu_unknown")

    def _usd_per_unit(self) -> Floats:
        units = [usd_per_unit(currency, self.market) for currency in COLUMN_CURRENCIES]
        values: Floats = self.np.array([self.np.nan if unit is None else float(unit[0]) for unit in units])
        return values

    # -- shapes, setups and room

    def _fit(self, rows: Ints) -> None:
        np = self.np
        shape_of, shapes = self._shapes(rows)
        table, shape_of = self._candidates(shapes, shape_of)
        count = table.count[shape_of]
        pair_row = np.repeat(np.arange(len(rows)), count)
        begins = np.cumsum(count) - count
        pair = np.repeat(table.first[shape_of] - begins, count) + np.arange(len(pair_row))
        ram = self.columns.ram_bytes[rows][pair_row] - table.ram[pair]
        disk = self.columns.disk_bytes[rows][pair_row] - table.disk[pair]
        near = (np.abs(ram) < _BYTES) | (np.abs(disk) < _BYTES)
        self.exact[rows[pair_row[near]]] = True
        fits = (ram >= 0) & (disk >= 0)
        has_room = np.zeros(len(rows), dtype=bool)
        has_room[pair_row[fits]] = True
        self._refuse_misfits(rows, shape_of, table, pair_row, ram, disk, ~has_room)
        pair_row, pair = pair_row[fits], pair[fits]
        if len(pair):
            self._choose(rows, table, pair_row, pair)

    def _shapes(self, rows: Ints) -> tuple[Ints, list[Shape]]:
        """Each row's shape: GPUs, class of driver, RAM bandwidth."""
        np, columns = self.np, self.columns
        classes = [self.shapes.cuda_class(version) for version in columns.cudas]
        bandwidths = [ram_bandwidth_gb_s(cpu) for cpu in columns.cpus]
        gpus, gpu_of = _distinct(self.models, id)
        drivers, driver_of = _distinct(classes)
        speeds, speed_of = _distinct(bandwidths)
        code = np.asarray(gpu_of)[columns.gpu_of[rows]] * len(drivers)
        code = (code + np.asarray(driver_of)[columns.cuda_of[rows]]) * len(speeds)
        code += np.asarray(speed_of)[columns.cpu_of[rows]]
        present, shape_of = np.unique(code, return_inverse=True)
        found = []
        for each in present.tolist():
            rest, speed = divmod(each, len(speeds))
            kind, driver = divmod(rest, len(drivers))
            models = gpus[kind]
            if models is None:
                raise AssertionError("a server with an unknown GPU is refused before")
            found.append(self.shapes.shape_with(models, drivers[driver], speeds[speed]))
        return shape_of, found

    def _candidates(self, shapes: list[Shape], shape_of: Ints) -> tuple[_CandidateColumns, Ints]:
        """And each row's shape by its place in them."""
        wish = self.requirement
        table = self.shapes.kept(
            wish.objective, wish.load_tokens_per_day, lambda: _CandidateColumns(self.shapes.recipe, wish)
        )
        places: Ints = table.places(shapes)[shape_of]
        return table, places

    def _refuse_misfits(
        self,
        rows: Ints,
        shape_of: Ints,
        table: _CandidateColumns,
        pair_row: Ints,
        ram: Floats,
        disk: Floats,
        is_misfit: Flags,
    ) -> None:
        """The nearest miss of each: of its shape, or of its own RAM and disk."""
        np = self.np
        own = np.full(len(rows), -np.inf)
        lacks_ram = ram < 0
        np.maximum.at(own, pair_row, np.where(lacks_ram, ram, disk))
        is_ram = np.zeros(len(rows), dtype=bool)
        best = np.where(lacks_ram, ram, disk) == own[pair_row]
        is_ram[pair_row[best & lacks_ram]] = True
        kind, margin = table.miss_kind[shape_of], table.miss_margin[shape_of]
        by_room = (kind < 1) | ((kind == 1) & (own > margin))
        by_room &= np.isfinite(own)
        close = is_misfit & (kind == 1) & (np.abs(own - margin) < _BYTES)
        self.exact[rows[close]] = True
        for name in ("ram", "disk"):
            chosen = is_misfit & by_room & (is_ram if name == "ram" else ~is_ram)
            self.distance[rows[chosen]] = -own[chosen]
            self._refuse(rows[chosen], name)
        by_shape = is_misfit & ~by_room
        self.distance[rows[by_shape]] = -margin[by_shape]
        for index, name in enumerate(table.miss_names):
            self._refuse(rows[by_shape & (table.miss_name[shape_of] == index)], name)

    def _choose(self, rows: Ints, table: _CandidateColumns, pair_row: Ints, pair: Ints) -> None:
        """The preferred setup of each row, by the very arithmetic of `preferred`, which is in floats too."""
        np, columns = self.np, self.columns
        disk = np.nan_to_num(columns.disk_mb_s[rows], nan=UNKNOWN_DISK_MB_S)[pair_row] * 1_000_000
        line = np.nan_to_num(columns.down_mbit_s[rows], nan=UNKNOWN_LINE_MBIT_S)[pair_row]
        line = line * EFFICIENCY * BYTES_PER_MBIT
        download = table.checkpoint[pair] / np.minimum(line, disk)
        image = table.image[pair] / line
        load = BOOT_S + image + table.checkpoint[pair] / disk + table.warm_up[pair]
        total = download + load
        in_time = download + image <= self.limits.download_s
        served = np.zeros(len(rows), dtype=bool)
        served[pair_row[in_time]] = True
        waiting = np.zeros(len(rows), dtype=bool)
        waiting[pair_row] = True
        self._refuse(rows[waiting & ~served], "network")
        life = columns.life_s[rows][pair_row]
        # What is cut to whole seconds, and nearer than those, is looked at.
        self.exact[rows[pair_row[in_time & (np.abs(life - total) < _LIFE_S)]]] = True
        serves = in_time & ~(total >= life)
        serving = np.zeros(len(rows), dtype=bool)
        serving[pair_row[serves]] = True
        self._refuse(rows[served & ~serving], "max_rental")
        pair_row, pair, total = pair_row[serves], pair[serves], total[serves]
        if not len(pair):
            return
        download, load = download[serves], load[serves]
        share = 1 + total / 86_400
        left = np.ones(len(pair), dtype=bool)
        if self.requirement.objective is Objective.COST:
            left &= share <= self._least(share, pair_row)[pair_row] * (1 + SAME_PRICE_SHARE)
        for value in (table.before[pair], share / table.divisor[pair], table.after[pair]):
            hidden = np.where(left, value, np.inf)
            left &= hidden == self._least(hidden, pair_row)[pair_row]
        chosen = np.flatnonzero(left)
        _, first = np.unique(pair_row[chosen], return_index=True)
        chosen = chosen[first]
        self._price(
            rows[pair_row[chosen]], table, pair[chosen], download[chosen], load[chosen], total[chosen]
        )

    def _least(self, values: Floats, pair_row: Ints) -> Floats:
        """Of each row's pairs. Pairs stand in the order of their rows."""
        np = self.np
        least: Floats = np.full(int(pair_row[-1]) + 1, np.inf)
        begins = np.flatnonzero(np.diff(pair_row, prepend=-1))
        least[pair_row[begins]] = np.minimum.reduceat(values, begins)
        return least

    # -- prices

    def _price(
        self, rows: Ints, table: _CandidateColumns, pair: Ints, download: Floats, load: Floats, total: Floats
    ) -> None:
        np, wish = self.np, self.requirement
        kinds = [(False, self.columns.on_demand[rows])]
        if wish.spot:
            bids, odd = self.columns.read_spot()
            self.exact |= odd
            kinds.append((True, bids[rows]))
            if wish.spot_only:
                del kinds[0]
        seconds = (np.ceil(download), np.ceil(load), np.ceil(total))
        budget = np.inf if wish.budget is None else float(wish.budget.per_day.amount)
        ways = [self._cheapest(rows, prices, seconds, budget, is_spot=is_spot) for is_spot, prices in kinds]
        cost, low, high = (np.stack([getattr(way, name) for way in ways]) for name in ("cost", "low", "high"))
        lacks = np.stack([way.lacks for way in ways])
        has = cost < np.inf
        affordable = has & (high <= budget)
        self.exact[rows[(has & ~affordable & (low <= budget)).any(axis=0)]] = True
        none = ~has.any(axis=0)
        self._refuse(rows[none], "no_price")
        is_plan = affordable.any(axis=0)
        open_ways = np.where(is_plan, affordable, has)
        lacks |= ~open_ways
        payable = np.where((~lacks).any(axis=0), open_ways & ~lacks, open_ways)
        rank = np.where(payable, cost, np.inf)
        chosen = rank.argmin(axis=0), np.arange(len(rows))
        if len(ways) > 1:
            both = np.isfinite(rank).all(axis=0)
            near = np.abs(rank[0, both] - rank[1, both]) <= 2 * (_ABS_USD + _REL * rank[:, both].min(axis=0))
            self.exact[rows[both][near]] = True
        cost, low, high, lacks = cost[chosen], low[chosen], high[chosen], lacks[chosen]
        is_over = ~is_plan & ~none
        self._refuse(rows[is_over], "over_budget")
        self._keep_smallest(rows[is_over], low[is_over], high[is_over], self.limits.over_budget)
        sure = is_plan & ~self.exact[rows]
        if sure.any():
            self._keep_best(rows[sure], table, pair[sure], cost[sure], lacks[sure])

    def _cheapest(
        self,
        rows: Ints,
        prices: Floats,
        seconds: tuple[Floats, Floats, Floats],
        budget: float,
        *,
        is_spot: bool,
    ) -> _Way:
        np = self.np
        life = self.columns.life_s[rows]
        odd_life = (life < EXPECTED_LIFE_S) & (life != np.floor(life))
        life = np.where((life < EXPECTED_LIFE_S) & (life >= 1), np.floor(life + 1e-6), EXPECTED_LIFE_S)
        self.exact[rows[odd_life]] = True
        per_day = _DAY_S / life
        down = 1 - self.columns.reliability[rows]
        download, load, total = seconds
        costs, firsts = [np.full(len(rows), np.inf)], [np.zeros(len(rows))]
        lacking = [np.ones(len(rows), dtype=bool)]
        for index, (currency, unit) in enumerate(
            zip(COLUMN_CURRENCIES, self._usd_per_unit().tolist(), strict=True)
        ):
            if currency not in self.currencies or math.isnan(unit):
                # As for `billings_of`: a coin that nobody says the worth of is no way to pay.
                continue
            fee = float(self.market.fees.percent(currency, is_spot=is_spot))
            creation = float(self.market.fees.creation(currency))
            price = prices[:, index]
            running = price * unit * (1 + fee / 100)
            creation_usd = creation * unit
            cost = running * (1 + down + (download + load) / _DAY_S * per_day) + creation_usd * per_day
            if is_spot:
                cost = cost + (running * total / _DAY_S + creation_usd) * float(SPOT_INTERRUPTIONS_PER_DAY)
            need = price * (1 + fee / 100) * float(FIRST_HOURS) / 24 + creation
            balance = self.market.balance(currency)
            held = np.inf if balance is None else float(balance)
            if held < np.inf:
                self.exact[rows[np.abs(need - held) <= _REL * held + 1e-12]] = True
            first = (running + creation_usd) * float(worst_rate_factor(currency))
            if budget < np.inf:
                self.exact[rows[np.abs(first - budget) <= _REL * budget]] = True
            costs.append(np.where(np.isnan(cost), np.inf, cost))
            firsts.append(first)
            lacking.append(~(need <= held))
        return self._way(np.stack(costs), np.stack(firsts), np.stack(lacking), budget)

    def _way(self, costs: Floats, firsts: Floats, lacking: Flags, budget: float) -> _Way:
        """Of the currencies, by row. Those whose costs floats cannot tell apart may each be the one."""
        np = self.np
        within = (costs < np.inf) & (firsts <= budget)
        is_open = within | ~within.any(axis=0)
        lacking = lacking | ~is_open
        costs = np.where(is_open, costs, np.inf)
        lacks: Flags = np.logical_and.reduce(lacking, axis=0)
        costs = np.where(lacking & ~lacks, np.inf, costs)
        best = costs.min(axis=0)
        may_be = (costs < np.inf) & (costs <= best + 2 * (_ABS_USD + _REL * best))
        margin = _REL * budget if budget < np.inf else 0.0
        low = np.where(may_be, firsts, np.inf).min(axis=0) - margin
        high = np.where(may_be, firsts, -np.inf).max(axis=0) + margin
        return _Way(best, low, high, lacks)

    # -- what is looked at

    def _keep_smallest(self, rows: Ints, low: Floats, high: Floats, count: int) -> None:
        """All that may be among the `count` smallest, each between its `low` and its `high`."""
        np = self.np
        sure = ~self.exact[rows]
        rows, low, high = rows[sure], low[sure], high[sure]
        if len(rows) > count:
            limit = np.partition(high, count - 1)[count - 1]
            rows = rows[low <= limit + 2 * (_ABS_USD + _REL * limit)]
        self.keep[rows] = True

    def _keep_best(
        self, rows: Ints, table: _CandidateColumns, pair: Ints, cost: Floats, lacks: Flags
    ) -> None:
        """The first of the ranking, with room for error, and all that may be on the front."""
        np, objective = self.np, self.requirement.objective
        error = _ABS_USD + _REL * cost
        low, high = cost - error, cost + error
        before = np.zeros(len(rows))
        if objective is Objective.SPEED:
            before = -table.speed[pair]
        elif objective is Objective.QUALITY:
            before = table.quality[pair]
        elif objective is Objective.VALUE:
            factor = table.per_million[pair]
            low, high = low * factor - 2e-6, high * factor + 2e-6
        count = self.limits.plans + 1
        chosen = np.ones(len(rows), dtype=bool)
        if len(rows) > count:
            last = np.lexsort((high, before, lacks))[count - 1]
            same = (lacks == lacks[last]) & (before == before[last])
            earlier = (lacks < lacks[last]) | ((lacks == lacks[last]) & (before < before[last]))
            chosen = earlier | (same & (low <= high[last]))
        self.keep[rows[chosen]] = True
        payable = ~lacks if (~lacks).any() else np.ones(len(rows), dtype=bool)
        self._keep_front(rows[payable], table.speed[pair][payable], cost[payable], error[payable])

    def _keep_front(self, rows: Ints, speed: Floats, cost: Floats, error: Floats) -> None:
        np = self.np
        order = np.lexsort((cost, -speed))
        rows, speed, cost, error = rows[order], speed[order], cost[order], error[order]
        begins = np.flatnonzero(np.diff(speed, prepend=np.inf))
        least = np.minimum.reduceat(cost + error, begins)
        faster = np.concatenate([[np.inf], np.minimum.accumulate(least)[:-1]])
        group = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(rows))))
        may = (cost - error <= least[group]) & (cost - error <= faster[group])
        self.keep[rows[may]] = True

    def _keep_nearest(self) -> None:
        """Of each refusal those that may be its nearest: it gives the words."""
        np, ids = self.np, self.columns.ids
        for index in range(len(self.names)):
            rows = np.flatnonzero((self.code == index) & ~self.exact)
            if not len(rows):
                continue
            distance = self.distance[rows]
            rows = rows[distance <= distance.min() + 2 * _BYTES]
            order = np.lexsort((ids[rows], self.distance[rows]))
            rows = rows[order]
            first = np.flatnonzero(np.diff(self.distance[rows], prepend=-np.inf))
            lowest = np.repeat(ids[rows[first]], np.diff(np.append(first, len(rows))))
            self.keep[rows[ids[rows] == lowest]] = True


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """On demand or on the spot market, by row: in the coin that `price_of` would take."""

    cost: Floats
    """All in, USD per day; inf where there is no price."""
    low: Floats
    """Least and most that the first day may cost."""
    high: Floats
    lacks: Flags
    """No wallet can pay it."""


class _CandidateColumns:
    """The candidates of all shapes met so far, one after the other, and each shape's nearest miss."""

    def __init__(self, recipe: Recipe, requirement: Requirement) -> None:
        import numpy as np

        self.np = np
        self._recipe = recipe
        self._objective, self._load = requirement.objective, requirement.load_tokens_per_day
        self._places: dict[int, int] = {}
        self._shapes: list[Shape] = []
        """Kept, so that no other object is ever taken for one of them."""
        self._misses: list[tuple[int, int, str]] = []
        self._counts: list[int] = []
        self._matrix = np.empty((0, _COLUMNS))
        self._tell()

    def places(self, shapes: list[Shape]) -> Ints:
        """Of each shape. Those not met before are added."""
        if len(self._shapes) >= SHAPES_MAX:
            for each in (self._places, self._shapes, self._misses, self._counts):
                each.clear()
            self._matrix = self._matrix[:0]
        rows: list[tuple[float, ...]] = []
        new = [shape for shape in shapes if id(shape) not in self._places]
        for shape in new:
            if id(shape) in self._places:
                continue
            self._places[id(shape)] = len(self._shapes)
            self._shapes.append(shape)
            self._counts.append(len(shape.candidates))
            rows.extend(_rows_of(shape, self._objective, self._load, self._recipe))
            miss = shape.nearest_miss
            self._misses.append((-1, 0, "precision") if miss is None else nearness(miss))
        if rows:
            self._matrix = self.np.concatenate([self._matrix, self.np.array(rows)])
        if new:
            self._tell()
        return self.np.array([self._places[id(shape)] for shape in shapes], dtype=self.np.int64)

    def _tell(self) -> None:
        np = self.np
        self.count = np.array(self._counts, dtype=np.int64)
        self.first = np.cumsum(self.count) - self.count
        (
            self.ram, self.disk, self.checkpoint, self.image, self.warm_up, self.before, self.divisor,
            self.after, self.speed, self.quality, self.per_million,
        ) = self._matrix.T.copy()  # fmt: skip
        self.miss_kind = np.array([each[0] for each in self._misses], dtype=np.int64)
        self.miss_margin = np.array([each[1] for each in self._misses], dtype=float)
        self.miss_names, numbers = _distinct([each[2] for each in self._misses])
        self.miss_name = np.array(numbers, dtype=np.int64)


_COLUMNS = 11


def _rows_of(
    shape: Shape, objective: Objective, load: int | None, recipe: Recipe
) -> tuple[tuple[float, ...], ...]:
    """What the columns hold of each candidate. Ranks stand for what is compared part by part."""
    parts = [setup_parts(each, objective, recipe) for each in shape.candidates]
    before = sorted({part[0] for part in parts})
    after = sorted({part[2] for part in parts})
    rows = []
    for each, (first, divisor, last) in zip(shape.candidates, parts, strict=True):
        tokens, copies = load_of(each.speed, load)
        rows.append(
            (
                float(each.ram_bytes),
                float(each.disk_bytes),
                float(each.setup.checkpoint_bytes),
                float(IMAGE_BYTES[each.setup.engine]),
                WARM_UP_S[each.setup.engine],
                float(before.index(first)),
                divisor,
                float(after.index(last)),
                each.speed.decode_tokens_per_s,
                float(QUALITY.index(each.setup.precision)),
                float(copies / tokens * 1_000_000) if tokens else float("inf"),
            )
        )
    return tuple(rows)


def _distinct(values: list[T], key: Callable[[T], object] = lambda value: value) -> tuple[list[T], list[int]]:
    keys = [key(value) for value in values]
    found = dict(zip(keys, values, strict=True))
    numbers = {each: number for number, each in enumerate(found)}
    return list(found.values()), [numbers[each] for each in keys]
