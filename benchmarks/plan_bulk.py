"""From a marketplace answer's bytes to ranked plans, beside a minimal typed decode of the same bytes.

python benchmarks/plan_bulk.py [--model glm-5.1] [--sizes 1000,10000,100000] [--rounds 5]

The floor is msgspec decoding only the fields that ranking needs, as plain floats and texts, with the
garbage collector off; it decides nothing. `cold` is a first plan: every hardware shape is evaluated and
nothing is remembered. `next` is the one after it, as the daemon makes at its next tick: coin rates and
every price in coins have moved, and a twentieth of the servers has changed hands. `same` is that very
answer planned once more: what is remembered of single records helps too. Goals: at most 2x the floor (aim
1.5x), time linear in the offers, and memory at most 6x the document. Times are of the processor, in one
thread, so that other work on the machine counts little. Documents are generated: simulated servers from a
seed, half of them rented.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec

from clorefleet.config.recipes import find_recipe, load_recipes
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketView
from clorefleet.domain.plan import PlanReport, Requirement
from clorefleet.market import bulk
from clorefleet.market.machines import MachineMemo
from clorefleet.planner import plan_requirement
from clorefleet.planner.gpus import load_gpus
from clorefleet.planner.shapes import ShapeMemo
from clorefleet.sandbox.catalogue import Catalogue
from clorefleet.sandbox.coins import CoinRates
from clorefleet.sandbox.listing import MarketplaceDocument

SEED = 7
SETUPS_MIN = 20
RENTED = 0.55
COINS_MOVE = 0.01
CHANGE_HANDS = 0.05


class Net(msgspec.Struct, gc=False):
    cc: str = ""
    down: float = 0


class Coins(msgspec.Struct, gc=False):
    bitcoin: float = 0
    clore: float = msgspec.field(default=0, name="CLORE-Blockchain")
    usd: float = msgspec.field(default=0, name="USD-Blockchain")


class Worth(msgspec.Struct, gc=False):
    on_demand_btc: float = 0
    on_demand_clore: float = 0


class Price(msgspec.Struct, gc=False):
    on_demand: Coins
    usd: Worth | None = None


class Specs(msgspec.Struct, gc=False):
    cpu: str
    ram: float
    disk: str
    disk_speed: float
    gpu: str
    gpuram: float
    net: Net


class Server(msgspec.Struct, gc=False):
    id: int
    price: Price
    rented: bool
    specs: Specs
    reliability: float
    allowed_coins: list[str]
    mrl: float = 0
    cuda_version: str = ""


class Answer(msgspec.Struct, gc=False):
    servers: list[Server]


def document(servers: int, *, step: int = 0) -> bytes:
    """An answer, or a later one at `step` 1."""
    rates = CoinRates.at_start(SEED)
    if step:
        rates = rates.drifted(SEED, step, COINS_MOVE)
    catalogue = Catalogue.of_seed(SEED, server_count=servers, rates=rates)
    rng = random.Random(SEED)
    rented = {number for number in catalogue.servers if rng.random() < RENTED}
    for number in catalogue.servers if step else ():
        if rng.random() < CHANGE_HANDS:
            rented ^= {number}
    return MarketplaceDocument(catalogue, SEED).with_rented(frozenset(rented))


class Planner:
    """As the daemon's market client and planner, with what both remember from one answer to the next."""

    def __init__(self, model: str) -> None:
        self.recipes, self.gpus = load_recipes(), load_gpus()
        self.recipe = find_recipe(model, self.recipes)
        self.requirement = Requirement(model)
        self.forget()

    def forget(self) -> None:
        self.shapes, self.machines = ShapeMemo(), MachineMemo()
        bulk._without_prices.cache_clear()

    def plan(self, body: bytes) -> tuple[PlanReport, object]:
        """And what was read, so that freeing it is timed no more than freeing the floor's objects."""
        now = datetime.now(UTC)
        table = bulk.table_of_answer(body, read_at=now, memo=self.machines)
        assert table is not None
        market = MarketView(table, table.rates, DOCUMENTED_FEES, now)
        return plan_requirement(self.requirement, market, self.recipe, self.gpus, memo=self.shapes), table

    def setups(self) -> tuple[int, int]:
        """Distinct setups that were found to run somewhere, and shapes that were looked at."""
        table = self.shapes.table(self.requirement, self.recipe)
        shapes = table._shapes.values()
        return len({each.setup for shape in shapes for each in shape.candidates}), table.evaluated


def measure(size: int, model: str, rounds: int) -> tuple[int, float]:
    """Medians of each, taken in turn; the size and the time of `next` in seconds."""
    first, later = document(size), document(size, step=1)
    decoder, planner = msgspec.json.Decoder(Answer), Planner(model)
    floors: list[float] = []
    taken: dict[str, list[float]] = {"cold": [], "next": [], "same": []}
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        began = time.process_time()
        decoded = decoder.decode(later)
        floors.append(time.process_time() - began)
        del decoded
        gc.enable()
        planner.forget()
        for name, body in (("cold", first), ("next", later), ("same", later)):
            began = time.process_time()
            report, read = planner.plan(body)
            taken[name].append(time.process_time() - began)
            del read
            assert report.plans and report.offers_seen >= size
    found, shapes = planner.setups()
    if found < SETUPS_MIN:
        raise SystemExit(f"only {found} setups: choose a model with more")
    columns = [f"floor {statistics.median(floors) * 1000:7.1f} ms"]
    for name, times in taken.items():
        ratio = statistics.median(each / floor for floor, each in zip(floors, times, strict=True))
        columns.append(f"{name} {statistics.median(times) * 1000:7.1f} ms {ratio:6.2f}x")
    columns.append(f"{found} setups on {shapes} shapes")
    print(f"{size:>7,} offers {len(first) / 1e6:6.1f} MB   " + "   ".join(columns))
    return size, statistics.median(taken["next"])


_MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import plan_bulk

def peak_kib():  # of this program alone: what getrusage tells begins with the parent's peak
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

planner = plan_bulk.Planner({model!r})
planner.plan(Path({small!r}).read_bytes())
before = peak_kib()
planner.plan(Path({large!r}).read_bytes())
print((peak_kib() - before) * 1024)
"""


def memory(size: int, model: str) -> float:
    """Growth of a process of its own at its peak, the document included, as a multiple of the document."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, servers in (("small", 1000), ("large", size)):
            files[name] = Path(folder) / name
            files[name].write_bytes(document(servers))
        code = _MEMORY.format(
            here=str(Path(__file__).parent), model=model, small=str(files["small"]), large=str(files["large"])
        )
        grown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        return int(grown) / files["large"].stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="glm-5.1")
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    rows = [measure(size, arguments.model, arguments.rounds) for size in sizes]
    for smaller, larger in pairwise(rows):
        growth = (larger[1] / smaller[1]) / (larger[0] / smaller[0])
        print(
            f"time of `next` per offer, {larger[0]:,.0f} against {smaller[0]:,.0f}: {growth:.2f}x (linear: 1)"
        )
    print(f"memory at {sizes[-1]:,} offers: {memory(sizes[-1], arguments.model):.1f}x the document (goal: 6)")


if __name__ == "__main__":
    main()
