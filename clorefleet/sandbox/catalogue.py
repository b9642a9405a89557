"""The simulated market's hosts: thousands of servers, made from a seed, with what each claims and is.

`Catalogue.of_seed` gives the same servers for the same seed on every machine. Each has an offer (its
wire record is written by `listing`) and a `ServerTruth`, which an honest host's offer agrees with and
a liar's does not. Shares, prices and hardware are made up to resemble the real market: mostly
consumer rigs, a few datacentre machines, owners with several servers, prices that follow the
hardware with much noise, and some prices that are absurd.

A few groups are placed on purpose, since a seed must not decide whether the sandbox is of use:
`_many_ram_rigs` (consumer GPUs beside 512 GB of RAM, for mixture-of-experts models with their experts
in RAM) and `_h200_machines`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from importlib import resources

from clorefleet.sandbox.coins import CLORE, COINS, USD, CoinRates, price_in
from clorefleet.sandbox.truth import ServerTruth, TrueGpu

GIB = 2**30
GB = 10**9

LIES = (
    "gpu_missing",
    "fewer_gpus",
    "other_model",
    "less_vram",
    "old_driver",
    "slow_network",
    "small_disk",
    "slow_ram",
    "never_boots",
)
"""`gpu_missing`: one GPU fewer than offered. `fewer_gpus`: half or fewer. `other_model`: a lesser card under
the offer. `less_vram`: half the memory. `old_driver`: CUDA 11.4 or 12.0 whatever the offer says.
`slow_network`: a twentieth. `small_disk`: an eighth. `slow_ram`: one channel of it. `never_boots`: takes
the order and never answers."""

_FIRST_SERVER_ID = 20_011
_FIRST_OWNER_ID = 1_203
_CROOKED_OWNER_RATE = 0.05
_LIE_RATE_CROOKED = 0.5
_LIE_RATE_OTHERS = 0.036
_OFFLINE_RATE = 0.012
_GIGASPOT_RATE = 0.02
_MIXED_RATE = 0.012
_DEAR_RATE = 0.012
_DIRT_CHEAP_RATE = 0.05
"""Of liars: an offer too good to be true is bait."""
_USD_PER_GIB_OF_RAM = 0.011
"""Per day, for what is beyond 128 GiB."""
_SPOT_ABOVE_RATE = 0.047
_NO_SPOT_RATE = 0.03
_AUTOPRICE_RATE = 0.8

_DRIVERS = (
    # driver, CUDA, share among consumer rigs, share among datacentre machines
    ("580.95.05", "13.0", 25, 45),
    ("575.64.03", "12.9", 6, 5),
    ("570.172.08", "12.8", 23, 22),
    ("560.35.05", "12.6", 9, 6),
    ("550.163.01", "12.4", 17, 14),
    ("535.261.03", "12.2", 11, 8),
    ("525.147.05", "12.0", 6, 0),
    ("470.256.02", "11.4", 3, 0),
)
_OLD_DRIVERS = (("470.256.02", "11.4"), ("525.147.05", "12.0"))

_COUNTRIES = (
    ("US", 18), ("DE", 9), ("PL", 8), ("UA", 7), ("BG", 6), ("NL", 5), ("CZ", 5), ("CA", 5), ("FI", 4),
    ("SE", 4), ("NO", 3), ("FR", 4), ("ES", 3), ("IT", 3), ("RO", 4), ("GB", 4), ("RU", 5), ("KZ", 3),
    ("VN", 3), ("TH", 2), ("JP", 2), ("KR", 2), ("AU", 2), ("BR", 2),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuKind:
    """One row of the packaged GPU data."""

    id: str
    driver_name: str
    short_name: str
    vram_mib: int
    compute_capability: str
    memory_bandwidth_gb_s: float
    pcie_generation: int
    power_limit_w: int
    marketed_gb: int
    share: float
    usd_per_day: tuple[float, float]
    cuda_min: str
    nvlink: bool
    count_weights: tuple[tuple[int, float], ...]

    @property
    def is_consumer(self) -> bool:
        return "GeForce" in self.driver_name


@dataclass(frozen=True, slots=True)
class Cpu:
    model: str
    cores: int
    threads: int
    ram_gib: tuple[int, ...]
    """Sizes of memory that are fitted to it."""
    ram_bandwidth_gb_s: float
    """Peak with every channel filled."""
    board: str


_HOME_CPUS = (
    Cpu("AMD Ryzen 9 7900X 12-Core Processor", 12, 24, (32, 64, 64, 96, 128), 83.2, "B650M DS3H"),
    Cpu("AMD Ryzen 9 5950X 16-Core Processor", 16, 32, (32, 64, 64, 128), 51.2, "X570 AORUS ELITE"),
    Cpu("AMD Ryzen 5 5600X 6-Core Processor", 6, 12, (16, 32, 32, 64), 51.2, "B550M PRO-VDH WIFI"),
    Cpu("AMD Ryzen 7 3700X 8-Core Processor", 8, 16, (16, 32, 32, 64), 51.2, "B450 TOMAHAWK MAX"),
    Cpu("13th Gen Intel(R) Core(TM) i9-13900K", 24, 32, (32, 64, 128), 89.6, "Z790 AORUS ELITE AX"),
    Cpu("12th Gen Intel(R) Core(TM) i5-12400F", 6, 12, (16, 32, 32, 64), 51.2, "PRO B660M-A DDR4"),
    Cpu("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", 6, 12, (16, 32, 64), 41.6, "PRIME Z390-P"),
)
_MINING_CPUS = (
    Cpu("Intel(R) Celeron(R) CPU G3930 @ 2.90GHz", 2, 2, (8, 8, 16), 34.1, "B250 MINING EXPERT"),
    Cpu("Intel(R) Core(TM) i3-9100 CPU @ 3.60GHz", 4, 4, (8, 16, 16), 38.4, "TB360-BTC D+"),
    Cpu("Intel(R) Pentium(R) Gold G5400 CPU @ 3.70GHz", 2, 4, (8, 8, 16), 38.4, "H110 Pro BTC+"),
    Cpu("Intel(R) Core(TM) i5-7500 CPU @ 3.40GHz", 4, 4, (16, 16, 32), 38.4, "Z270-P"),
)
_WORKSTATION_CPUS = (
    Cpu("AMD EPYC 7282 16-Core Processor", 16, 32, (64, 128, 128, 256), 85.3, "H11SSL-i"),
    Cpu("AMD EPYC 7302 16-Core Processor", 16, 32, (64, 128, 256), 204.8, "ROMED8-2T"),
    Cpu("AMD EPYC 7402P 24-Core Processor", 24, 48, (128, 128, 256), 204.8, "ROMED8-2T"),
    Cpu("Intel(R) Xeon(R) CPU E5-2698 v3 @ 2.30GHz", 32, 64, (64, 64, 128, 256), 136.5, "X10DRG-Q"),
    Cpu("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 28, 56, (64, 128, 128), 153.6, "X10DRi-T"),
    Cpu("AMD Ryzen Threadripper 3960X 24-Core Processor", 24, 48, (64, 128, 256), 102.4, "TRX40 Taichi"),
)
_MANY_RAM_CPUS = (
    Cpu("AMD EPYC 7532 32-Core Processor", 32, 64, (512,), 204.8, "ROMED8-2T"),
    Cpu("AMD EPYC 7452 32-Core Processor", 32, 64, (512,), 204.8, "H12SSL-i"),
    Cpu("AMD EPYC 7662 64-Core Processor", 64, 128, (512, 512, 1024), 204.8, "H12SSL-NT"),
    Cpu("AMD EPYC 7763 64-Core Processor", 64, 128, (512, 512, 768, 1024), 204.8, "KRPA-U16"),
)
_DATACENTRE_CPUS = (
    Cpu("AMD EPYC 7742 64-Core Processor", 128, 256, (512, 1024, 1024), 409.6, "G492-ZD2"),
    Cpu("AMD EPYC 9354 32-Core Processor", 64, 128, (768, 1024, 1536), 921.6, "AS-4125GS-TNRT"),
    Cpu("Intel(R) Xeon(R) Platinum 8480+", 112, 224, (1024, 2048), 614.4, "X13DEG-OAD"),
    Cpu("Intel(R) Xeon(R) Gold 6342 CPU @ 2.80GHz", 48, 96, (256, 512, 512), 409.6, "X12DPG-OA6"),
)
_HGX_CPU = Cpu("Intel(R) Xeon(R) Platinum 8568Y+", 96, 192, (2048,), 716.8, "HGX-H200-X13")

_DISKS = (
    "DGSM3512GM23T", "KINGSTONxSNV2S1000G", "SamsungxSSDx980xPROx1TB", "WDCxWDSx500G2B0A",
    "XrayDisk 512GB SSD", "CT1000P3PSSD8", "KINGSTONx20SA400S37120G", "Micron_7450_MTFDKCC3T8TFR",
    "INTEL SSDPE2KX040T8",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Owner:
    id: int
    country: str
    price_level: float
    is_crooked: bool
    favourite: GpuKind


@dataclass(slots=True)
class MarketServer:
    """One server: what the market lists, and what it is. Prices change; nothing else does."""

    id: int
    owner_id: int
    country: str
    gpus: tuple[GpuKind, ...]
    """As offered; the truth may differ."""
    cpu: Cpu
    ram_gib: float
    disk_gb: float
    disk_model: str
    disk_mb_s: float
    down_mbit_s: float
    up_mbit_s: float
    cuda_version: str
    pcie_generation: int
    pcie_width: int
    mrl_hours: int
    truth: ServerTruth
    on_demand_usd: Decimal
    spot_usd: Decimal | None
    """None where the host takes no bids."""
    is_autopriced: bool
    """Coin prices follow the USD price through the rate."""
    is_offline: bool
    """Listed, and away: an order is refused with `server-offline`."""
    on_gigaspot: bool
    mean_free_h: float
    mean_rented_h: float
    reliability: float
    priced_coins: tuple[str, ...]
    allowed_coins: tuple[str, ...]
    coin_noise: dict[str, float] = field(default_factory=dict)
    """How far a host's own coin prices are from the USD one, where they are not automatic."""
    is_free_at_start: bool = False
    on_demand: dict[str, Decimal] = field(default_factory=dict)
    spot: dict[str, Decimal] = field(default_factory=dict)

    def reprice(self, rates: CoinRates) -> None:
        """Set prices per day in each coin at `rates`. Hosts without autoprice keep theirs once set."""
        if self.on_demand and not self.is_autopriced:
            return
        self.on_demand = {coin: self._listed(coin, self.on_demand_usd, rates) for coin in self.priced_coins}
        self.spot = (
            {}
            if self.spot_usd is None
            else {coin: self._listed(coin, self.spot_usd, rates) for coin in self.priced_coins}
        )

    def _listed(self, coin: str, usd: Decimal, rates: CoinRates) -> Decimal:
        noise = Decimal(str(self.coin_noise.get(coin, 1.0)))
        return rates.from_usd(coin, usd * noise)

    def scale_prices(self, factor: Decimal) -> None:
        """The host changes its mind: every price times `factor`."""
        self.on_demand_usd = price_in(USD, self.on_demand_usd * factor)
        self.on_demand = {coin: price_in(coin, price * factor) for coin, price in self.on_demand.items()}

    @property
    def rentable_coins(self) -> tuple[str, ...]:
        """Both priced and allowed: an order needs the currency in both lists."""
        return tuple(coin for coin in self.on_demand if coin in self.allowed_coins)


@lru_cache(maxsize=1)
def gpu_kinds() -> tuple[GpuKind, ...]:
    text = resources.files("clorefleet.data").joinpath("sandbox_gpus.json").read_text(encoding="utf-8")
    kinds = []
    for row in json.loads(text)["gpus"]:
        low, high = row["usd_per_day"]
        counts = tuple((int(n), float(w)) for n, w in row["count_weights"].items())
        kinds.append(GpuKind(**{**row, "usd_per_day": (low, high), "count_weights": counts}))
    return tuple(kinds)


def _kind(kind_id: str) -> GpuKind:
    return next(kind for kind in gpu_kinds() if kind.id == kind_id)


class Catalogue:
    """All servers of one seed, by id."""

    def __init__(self, servers: tuple[MarketServer, ...], rates: CoinRates) -> None:
        self.servers = {server.id: server for server in servers}
        self.rates = rates
        self.reprice(rates)

    @classmethod
    def of_seed(cls, seed: int, *, server_count: int, rates: CoinRates) -> Catalogue:
        return cls(tuple(_make_servers(seed, server_count)), rates)

    def reprice(self, rates: CoinRates) -> None:
        self.rates = rates
        for server in self.servers.values():
            server.reprice(rates)


def _make_servers(seed: int, count: int) -> list[MarketServer]:
    rng = random.Random(f"{seed}:catalogue")
    owners = _make_owners(rng, count)
    placed = [*_many_ram_rigs(rng, owners), *_h200_machines(rng, owners)]
    if count < len(placed):
        raise ValueError(f"a catalogue has at least {len(placed)} servers")
    servers = placed + [_natural(rng, _weighted_owner(rng, owners)) for _ in range(count - len(placed))]
    rng.shuffle(servers)
    server_id = _FIRST_SERVER_ID
    numbered = []
    for server in servers:
        server_id += rng.choice((1, 1, 1, 2, 3, 7))
        truth = replace(server.truth, server_id=server_id)
        server.id, server.truth = server_id, truth
        numbered.append(server)
    return numbered


def _make_owners(rng: random.Random, count: int) -> list[Owner]:
    kinds = gpu_kinds()
    shares = [kind.share for kind in kinds]
    names, weights = zip(*_COUNTRIES, strict=True)
    owner_id = _FIRST_OWNER_ID
    owners = []
    for _ in range(max(60, count // 4)):
        owner_id += rng.randint(1, 40)
        owners.append(
            Owner(
                owner_id,
                rng.choices(names, weights)[0],
                rng.uniform(0.9, 1.12),
                rng.random() < _CROOKED_OWNER_RATE,
                rng.choices(kinds, shares)[0],
            )
        )
    return owners


def _weighted_owner(rng: random.Random, owners: list[Owner]) -> Owner:
    """A few owners have dozens of servers, most have one to three."""
    return owners[min(int(rng.random() ** 1.9 * len(owners)), len(owners) - 1)]


def _natural(rng: random.Random, owner: Owner) -> MarketServer:
    kinds = gpu_kinds()
    kind = owner.favourite if rng.random() < 0.55 else rng.choices(kinds, [k.share for k in kinds])[0]
    counts, weights = zip(*kind.count_weights, strict=True)
    n = rng.choices(counts, weights)[0]
    gpus = (kind,) * n
    if n > 1 and kind.is_consumer and rng.random() < _MIXED_RATE * 2.5:
        other = rng.choice([k for k in kinds if k.is_consumer and k is not kind])
        gpus = (kind,) * (n - 1) + (other,)
    cpu = _fitting_cpu(rng, kind, n)
    datacentre = cpu in _DATACENTRE_CPUS
    driver, cuda = _driver(rng, kind, datacentre=datacentre)
    disk_gb = rng.uniform(900, 7600) if datacentre else rng.choice((60, 110, 220, 440, 450, 900, 950, 1800))
    down = rng.uniform(900, 9500) if datacentre else rng.choice((60, 95, 300, 500, 600, 850, 930, 940, 2300))
    low, high = kind.usd_per_day
    usd = rng.triangular(low, high, low + (high - low) * 0.4) * n**0.98
    usd *= owner.price_level * rng.uniform(0.92, 1.1)
    ram_gib = rng.choice(cpu.ram_gib)
    if kind.is_consumer or kind.usd_per_day[0] < 20:  # the price of a big machine already pays for its RAM
        usd += max(0, ram_gib - 128) * _USD_PER_GIB_OF_RAM
    return _assemble(
        rng,
        owner,
        gpus=gpus,
        cpu=cpu,
        ram_gib=ram_gib,
        disk_gb=disk_gb * rng.uniform(0.72, 0.99),
        down_mbit_s=down * rng.uniform(0.6, 1.02),
        driver=driver,
        cuda=cuda,
        usd=usd,
    )


def _fitting_cpu(rng: random.Random, kind: GpuKind, n: int) -> Cpu:
    if not kind.is_consumer:
        is_big = kind.vram_mib > (40_000 if n >= 4 else 60_000)
        return rng.choice(_DATACENTRE_CPUS if is_big else _WORKSTATION_CPUS)
    if n >= 4 and kind.marketed_gb < 24:
        return rng.choice(_MINING_CPUS)
    if n >= 4:
        return rng.choice((*_WORKSTATION_CPUS, *_MINING_CPUS[2:]))
    return rng.choice(_HOME_CPUS if n < 3 else (*_HOME_CPUS, *_WORKSTATION_CPUS))


def _driver(rng: random.Random, kind: GpuKind, *, datacentre: bool) -> tuple[str, str]:
    usable = [row for row in _DRIVERS if _version(row[1]) >= _version(kind.cuda_min)]
    weights = [row[3] if datacentre else row[2] for row in usable]
    if not any(weights):
        weights = [1] * len(usable)
    chosen = rng.choices(usable, weights)[0]
    return chosen[0], chosen[1]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _many_ram_rigs(rng: random.Random, owners: list[Owner]) -> list[MarketServer]:
    """Consumer GPUs beside 512 GB and more: honest and affordable ones, then a natural tail."""
    honest = (
        ("rtx-3090", 4, 512, 12.4), ("rtx-4090", 4, 512, 14.1), ("rtx-3090", 8, 512, 13.9),
        ("rtx-3090", 6, 512, 13.2), ("rtx-4090", 4, 512, 14.6), ("rtx-3090", 4, 768, 13.6),
    )  # fmt: skip
    trusted = [owner for owner in owners if not owner.is_crooked]
    made = []
    for (kind_id, n, ram_gib, usd), owner in zip(honest, rng.sample(trusted, len(honest)), strict=True):
        server = _assemble(
            rng,
            owner,
            gpus=(_kind(kind_id),) * n,
            cpu=rng.choice(_MANY_RAM_CPUS),
            ram_gib=ram_gib,
            disk_gb=rng.uniform(900, 1900),
            down_mbit_s=rng.uniform(1150, 2600),
            driver="580.95.05",
            cuda="13.0",
            usd=usd,
            is_placed=True,
        )
        made.append(server)
    for _ in range(14):
        kind, n = (
            _kind(rng.choice(("rtx-3090", "rtx-4090", "rtx-3090", "rtx-a5000"))),
            rng.choice((2, 4, 6, 8)),
        )
        cpu = rng.choice(_MANY_RAM_CPUS)
        driver, cuda = _driver(rng, kind, datacentre=False)
        low, high = kind.usd_per_day
        made.append(
            _assemble(
                rng,
                _weighted_owner(rng, owners),
                gpus=(kind,) * n,
                cpu=cpu,
                ram_gib=rng.choice(cpu.ram_gib),
                disk_gb=rng.uniform(380, 3600),
                down_mbit_s=rng.choice((480, 900, 1900, 4600)) * rng.uniform(0.8, 1.0),
                driver=driver,
                cuda=cuda,
                usd=max(rng.uniform(15.8, 19), rng.uniform(low, high) * n + rng.uniform(4, 9)),
            )
        )
    return made


def _h200_machines(rng: random.Random, owners: list[Owner]) -> list[MarketServer]:
    """Eight H200 in one box, from several owners, honest and free."""
    trusted = [owner for owner in owners if not owner.is_crooked]
    made = []
    for usd, owner in zip((528, 585, 640, 705, 790, 915), rng.sample(trusted, 6), strict=True):
        server = _assemble(
            rng,
            owner,
            gpus=(_kind("h200-141"),) * 8,
            cpu=_HGX_CPU,
            ram_gib=2048,
            disk_gb=rng.uniform(3400, 14_000),
            down_mbit_s=rng.uniform(5200, 9800),
            driver="580.95.05",
            cuda="13.0",
            usd=usd,
            is_placed=True,
        )
        made.append(server)
    return made


def _assemble(
    rng: random.Random,
    owner: Owner,
    *,
    gpus: tuple[GpuKind, ...],
    cpu: Cpu,
    ram_gib: float,
    disk_gb: float,
    down_mbit_s: float,
    driver: str,
    cuda: str,
    usd: float,
    is_placed: bool = False,
) -> MarketServer:
    """Put one server together: the truth, perhaps a lie about it, and its prices.

    A placed server is honest, online, free at the start and rarely taken by others.
    """
    mining = cpu in _MINING_CPUS
    generation = min(gpus[0].pcie_generation, 3 if mining else 5)
    width = 1 if mining and len(gpus) > 2 else (16 if len(gpus) <= 4 or not gpus[0].is_consumer else 8)
    visible_gib = round(ram_gib * rng.uniform(0.978, 0.985), 4)
    honest = ServerTruth(
        server_id=0,
        gpus=tuple(_true_gpu(kind, generation, width) for kind in gpus),
        driver_version=driver,
        cuda_version=cuda,
        cpu_model=cpu.model,
        cores=cpu.cores,
        threads=cpu.threads,
        ram_bytes=int(visible_gib * GIB),
        ram_bandwidth_gb_s=cpu.ram_bandwidth_gb_s,
        disk_free_bytes=int(disk_gb * GB),
        disk_mb_s=round(rng.uniform(1800, 6800) if disk_gb > 300 else rng.uniform(380, 2400), 2),
        down_mbit_s=round(down_mbit_s, 2),
        up_mbit_s=round(down_mbit_s * rng.uniform(0.35, 1.0), 2),
        shm_bytes=int(visible_gib * GIB / 2),
        boot_seconds=round(rng.uniform(60, 150), 1),
    )
    lie_rate = _LIE_RATE_CROOKED if owner.is_crooked else _LIE_RATE_OTHERS
    is_liar = not is_placed and rng.random() < lie_rate
    truth = _with_lie(rng, honest, rng.choice(LIES)) if is_liar else honest
    price = Decimal(str(_odd_price(rng, usd, is_liar=is_liar, is_placed=is_placed)))
    on_demand_usd = price_in(USD, price)
    claims = {
        "disk_mb_s": honest.disk_mb_s if rng.random() > 0.06 else 0,
        "down": round(honest.down_mbit_s * rng.uniform(0.97, 1.04), 2),
        "up": round(honest.up_mbit_s * rng.uniform(0.97, 1.04), 2),
    }
    is_autopriced = is_placed or rng.random() < _AUTOPRICE_RATE
    priced = COINS if is_placed else _priced_coins(rng)
    return MarketServer(
        id=0,
        owner_id=owner.id,
        country=owner.country,
        gpus=gpus,
        cpu=cpu,
        ram_gib=visible_gib,
        disk_gb=round(disk_gb, 4),
        disk_model=rng.choice(_DISKS),
        disk_mb_s=claims["disk_mb_s"],
        down_mbit_s=claims["down"],
        up_mbit_s=claims["up"],
        cuda_version=cuda,
        pcie_generation=generation,
        pcie_width=width,
        mrl_hours=rng.choice((720, 1440))
        if is_placed
        else rng.choice((24, 48, 72, 72, 72, 96, 168, 720, 1440)),
        truth=truth,
        on_demand_usd=on_demand_usd,
        spot_usd=_spot_usd(rng, on_demand_usd, is_placed=is_placed),
        is_autopriced=is_autopriced,
        is_offline=not is_placed and rng.random() < _OFFLINE_RATE,
        on_gigaspot=not is_placed and rng.random() < _GIGASPOT_RATE,
        mean_free_h=720.0 if is_placed else rng.uniform(8, 30),
        mean_rented_h=5.0 if is_placed else rng.uniform(8, 30),
        reliability=round(rng.uniform(0.975, 0.9995), 4) if is_placed else _reliability(rng),
        priced_coins=priced,
        allowed_coins=COINS if is_placed else _allowed_coins(rng, priced),
        coin_noise={} if is_autopriced else {coin: rng.uniform(0.75, 1.3) for coin in COINS if coin != USD},
        is_free_at_start=is_placed,
    )


def _true_gpu(kind: GpuKind, generation: int, width: int) -> TrueGpu:
    return TrueGpu(
        name=kind.driver_name,
        vram_mib=kind.vram_mib,
        compute_capability=kind.compute_capability,
        memory_bandwidth_gb_s=kind.memory_bandwidth_gb_s,
        pcie_generation=generation,
        pcie_width=width,
        power_limit_w=kind.power_limit_w,
        nvlink=kind.nvlink,
    )


def _with_lie(rng: random.Random, honest: ServerTruth, lie: str) -> ServerTruth:
    """What the machine behind the honest-looking offer really is."""
    gpus = honest.gpus
    if lie == "fewer_gpus" and len(gpus) < 2:
        lie = "gpu_missing"
    lying = replace(honest, lies=frozenset({lie}))
    match lie:
        case "gpu_missing":
            return replace(lying, gpus=gpus[:-1])
        case "fewer_gpus":
            return replace(lying, gpus=gpus[: len(gpus) // 2])
        case "other_model":
            lesser = _lesser_kind(rng, gpus[0])
            return replace(
                lying, gpus=tuple(_true_gpu(lesser, gpu.pcie_generation, gpu.pcie_width) for gpu in gpus)
            )
        case "less_vram":
            return replace(lying, gpus=tuple(replace(gpu, vram_mib=gpu.vram_mib // 2) for gpu in gpus))
        case "old_driver":
            driver, cuda = rng.choice(_OLD_DRIVERS)
            return replace(lying, driver_version=driver, cuda_version=cuda)
        case "slow_network":
            slow = round(honest.down_mbit_s / 20, 2)
            return replace(lying, down_mbit_s=slow, up_mbit_s=min(slow, honest.up_mbit_s))
        case "small_disk":
            return replace(lying, disk_free_bytes=honest.disk_free_bytes // 8)
        case "slow_ram":
            return replace(lying, ram_bandwidth_gb_s=round(honest.ram_bandwidth_gb_s / 8, 1))
        case "never_boots":
            return lying
    raise ValueError(f"unknown lie {lie}")


def _lesser_kind(rng: random.Random, gpu: TrueGpu) -> GpuKind:
    """A card of less memory; under the least of all, an older one."""
    lesser = [
        kind
        for kind in gpu_kinds()
        if kind.vram_mib < gpu.vram_mib and kind.is_consumer and kind.driver_name != gpu.name
    ]
    return rng.choice(lesser or [_kind("gtx-1070")])


def _odd_price(rng: random.Random, usd: float, *, is_liar: bool, is_placed: bool) -> float:
    if is_placed:
        return usd
    if is_liar and rng.random() < _DIRT_CHEAP_RATE:
        return max(0.01, usd / rng.choice((40, 100, 250)))
    if rng.random() < _DEAR_RATE:
        return usd * rng.choice((8, 20, 100))
    return usd


def _spot_usd(rng: random.Random, on_demand_usd: Decimal, *, is_placed: bool) -> Decimal | None:
    if not is_placed and rng.random() < _NO_SPOT_RATE:
        return None
    above = not is_placed and rng.random() < _SPOT_ABOVE_RATE
    share = rng.uniform(1.02, 1.6) if above else rng.uniform(0.6, 0.8)
    return price_in(USD, on_demand_usd * Decimal(str(round(share, 3))))


def _priced_coins(rng: random.Random) -> tuple[str, ...]:
    roll = rng.random()
    if roll < 0.06:
        return COINS[:1]
    if roll < 0.2:
        return tuple(coin for coin in COINS if coin != USD)
    if roll < 0.24:
        return tuple(coin for coin in COINS if coin != CLORE)
    return COINS


def _allowed_coins(rng: random.Random, priced: tuple[str, ...]) -> tuple[str, ...]:
    """Unlike the price keys on about a tenth of all servers, as in captured data."""
    roll = rng.random()
    if roll < 0.3 and priced != COINS:
        return COINS
    if roll < 0.04:
        return priced[1:]
    return priced


def _reliability(rng: random.Random) -> float:
    roll = rng.random()
    if roll < 0.04:
        return 0
    if roll < 0.09:
        return 1
    return round(min(0.9999, max(0.2, 1 - rng.expovariate(1 / 0.022))), rng.choice((4, 4, 4, 16)))
