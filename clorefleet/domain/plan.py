"""What the planner answers: fits, plans, refusals, and the reasons of each. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.failure import Exclusion
from clorefleet.domain.host import CudaFound
from clorefleet.domain.kinds import EngineName, Mark, Precision
from clorefleet.domain.money import Budget, Money, Rate, worst_rate_factor
from clorefleet.domain.offer import Offer
from clorefleet.domain.setup import Setup


class Objective(StrEnum):
    COST = "cost"
    SPEED = "speed"
    QUALITY = "quality"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the user wants of a plan. None means: the recipe's default, or no limit."""

    model: str
    budget: Budget | None = None
    objective: Objective = Objective.COST
    precisions: tuple[Precision, ...] = ()
    """Empty: FP8, BF16 and Q4 (and what the recipe names as their like)."""
    checkpoints: tuple[str, ...] = ()
    """Only these weights of the recipe, by key; empty: any."""
    min_context_tokens: int | None = None
    min_decode_tokens_per_s: float | None = None
    min_reliability: Decimal | None = None
    countries: tuple[str, ...] = ()
    gpu: str = ""
    """Only servers whose GPU name contains this."""
    spot: bool = False
    """Spot offers too. Off unless asked for: a spot server can be taken away at any time."""
    spot_only: bool = False
    """No on-demand offers. Says nothing unless `spot` is set."""
    excluded_servers: tuple[int, ...] = ()
    load_tokens_per_day: int | None = None
    """Output tokens that the user expects to generate; None: as many as the server can."""
    engines: tuple[EngineName, ...] = ()
    """Only these; empty: all that the recipe has."""
    exclusions: tuple[Exclusion, ...] = ()
    """Learned from failures; set for each planning anew, never stored."""
    cuda_found: tuple[CudaFound, ...] = ()
    """Measured on servers: believed before their offers. Set for each planning anew, never stored."""
    hedge: bool = False
    """Rent two servers for an empty replica where the budget carries both; keep the first that is ready."""


@dataclass(frozen=True, slots=True)
class Term:
    """One line of arithmetic: a named part, its value, and why it is believed."""

    name: str
    value: Decimal
    unit: str
    """`bytes`, `GiB`, `s`, `USD/day`, `tok/s`, ..."""
    mark: Mark
    source: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict on a setup on hardware.

    Either it fits, with the least margin in bytes, or it names the binding constraint, the shortfall and
    what would cure it.
    """

    fits: bool
    memory_per_gpu: tuple[Term, ...]
    ram: tuple[Term, ...]
    disk: tuple[Term, ...]
    margin_bytes: int
    binding: str = ""
    """`vram`, `ram`, `disk`, `cuda`, `driver`, `compute_capability`, `divisibility`, `layout`, ..."""
    shortfall: str = ""
    cure: str = ""
    visible_bytes: int = 0
    """GPU memory that nvidia-smi shows where the least is to spare; 0 where it was not looked at."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Predicted unless `mark` says measured."""

    decode_tokens_per_s: float
    """One stream."""
    terms: tuple[Term, ...]
    mark: Mark = Mark.ASSUMED
    throughput_tokens_per_s: float | None = None
    """Output of all `concurrency` streams together, the time for their prompts included."""
    prefill_tokens_per_s: float | None = None
    """Of one prompt, while nothing else runs."""
    first_token_s: float | None = None
    """From a typical prompt to its first token."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a plan costs, in USD per day, all in."""

    billed: Rate
    """In the currency the market will bill, per day, without fee: what `create_order` approves."""
    is_spot: bool
    all_in_usd_per_day: Rate
    terms: tuple[Term, ...]
    """Sum to `all_in_usd_per_day`."""
    usd_per_million_tokens: Decimal | None = None
    """Output tokens, at the stated load or always busy."""
    copies_for_load: int = 1
    """Servers like this one that the stated load would keep busy; `usd_per_million_tokens` pays for all."""
    break_even_tokens_per_day: int | None = None
    """Output tokens a day from which this is cheaper than the recipe's hosted API; None: no API known."""
    is_break_even_in_reach: bool = False
    """Whether this server can generate that many."""
    lacking: Money | None = None
    """What the wallet of the billed currency lacks for the first hours; None: enough, or wallets unknown."""
    fee_percent: Decimal = Decimal(0)
    """The market's fee for renters, on top of `billed`."""
    creation_fee: Decimal = Decimal(0)
    """Once per order, in the billed currency."""
    usd_per_unit: Decimal = Decimal(1)
    """USD per unit of the billed currency when the plan was made."""
    rate_source: str = ""

    @property
    def running_usd_per_day(self) -> Decimal:
        """Price and fee: what each day costs while the order runs."""
        return self.billed.amount * (1 + self.fee_percent / 100) * self.usd_per_unit

    @property
    def first_day_usd(self) -> Decimal:
        """The most that the first day can cost: a full day and the creation fee, of a coin at the worst rate
        that the fleet's ceilings admit."""
        first_day = self.running_usd_per_day + self.creation_fee * self.usd_per_unit
        return first_day * worst_rate_factor(self.billed.currency)


@dataclass(frozen=True, slots=True)
class Plan:
    offer: Offer
    setup: Setup
    fit: Fit
    speed: Speed
    price: Price
    reasons: tuple[str, ...] = ()
    min_tokens_per_s: float = 0.0
    """For one stream: what the user asked for, else the recipe's floor. A replica below it is given back."""

    @property
    def key(self) -> str:
        """Stable name of offer x setup, used to exclude a tried plan."""
        kind = "spot" if self.price.is_spot else "on-demand"
        return f"{self.offer.server_id}/{kind}/{self.setup.checkpoint}/{self.setup.engine}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a class of offers cannot run the model, with the nearest cure, and how many offers it is about."""

    code: str
    """`over_budget`, `vram`, `ram`, `disk`, `cuda`, `rented`, `flagged`, `reliability`, `speed`, ..."""
    text: str
    """Of the nearest miss."""
    count: int
    example: str = ""
    """The nearest miss."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The ranked answer for one requirement over one reading of the market."""

    requirement: Requirement
    plans: tuple[Plan, ...]
    """Best first, inside the budget and above the floors."""
    over_budget: tuple[Plan, ...]
    """Nearest first: what would fit but costs too much."""
    refusals: tuple[Refusal, ...]
    offers_seen: int
    pareto: tuple[str, ...] = ()
    """Keys of the plans that nothing beats on both price and speed."""
    advice: tuple[str, ...] = ()
    """When there is no plan: what the budget does buy."""
