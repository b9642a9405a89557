"""The arithmetic of a plan as data, for whoever prints it.

Every section's terms are the very ones that decided: they come from the plan's fit, speed and price. Only the
unit changes (bytes to GiB), and sums are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from clorefleet.domain.money import COIN_RATE_MARGIN, Currency, format_usd
from clorefleet.domain.plan import Plan, Term
from clorefleet.domain.recipe import EngineName, Mark, Recipe
from clorefleet.planner.cost import usd_per_million
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.hardware import hardware_of_offer
from clorefleet.planner.request_capacity import capacity_of

GIB = Decimal(1 << 30)
_HUNDREDTH = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    sentences: tuple[str, ...]
    terms: tuple[Term, ...] = ()


def explain(plan: Plan, recipe: Recipe, gpus: GpuTable) -> tuple[Section, ...]:
    """Setup, memory, speed and price of a plan, each figure with its mark and source."""
    where = "on the GPU with the least to spare" if plan.setup.engine is EngineName.LLAMACPP else "per GPU"
    return (
        _setup(plan, recipe, gpus),
        Section(f"Memory {where}", (), _in_gib(plan.fit.memory_per_gpu)),
        Section("RAM", (), _in_gib(plan.fit.ram)),
        Section("Disk", (), _in_gib(plan.fit.disk)),
        _speed(plan),
        _price(plan, recipe),
    )


def _setup(plan: Plan, recipe: Recipe, gpus: GpuTable) -> Section:
    setup = plan.setup
    checkpoint = recipe.checkpoint(setup.checkpoint)
    how = [
        f"{checkpoint.format} from {setup.repo}, {checkpoint.bytes / 1e9:,.1f} GB [{checkpoint.bytes_mark}]",
        f"{setup.engine} in {setup.image}, {setup.tensor_parallel} GPU(s), "
        f"context {setup.context_tokens:,} x {setup.concurrency} request(s), KV in {setup.kv_dtype}",
    ]
    hardware = hardware_of_offer(plan.offer, gpus)
    if hardware is not None:
        most = capacity_of(setup, recipe, hardware)
        how.append(
            f"would fit as well: context {most.context_tokens:,} for one request, or {most.requests:,} "
            f"request(s) at {setup.context_tokens:,} [{Mark.COMPUTED}]"
        )
    if setup.layers_per_gpu:
        how.append(f"layers per GPU, output head included: {', '.join(map(str, setup.layers_per_gpu))}")
    if setup.experts_in_ram:
        how.append(f"experts of {len(setup.experts_in_ram)} layers stay in RAM")
    if setup.speculation is not None:
        each = setup.speculation
        how.append(
            f"{each.algorithm} speculation: {each.num_steps} steps, top-{each.top_k}, "
            f"{each.num_draft_tokens} draft tokens"
        )
    return Section(f"Setup on server {plan.offer.server_id} ({plan.offer.gpu_summary})", tuple(how))


def _speed(plan: Plan) -> Section:
    speed = plan.speed
    step_ms = sum((term.value for term in speed.terms if term.unit == "ms/token"), Decimal(0))
    gain = next((term.value for term in speed.terms if term.unit == "x"), Decimal(1))
    factor = next((term.value for term in speed.terms if term.unit == "factor"), None)
    measured = "" if factor is None else f" x {factor} measured"
    sentences = [
        f"one stream: {gain} / {step_ms:.2f} ms a step{measured} = {speed.decode_tokens_per_s:.1f} tok/s"
    ]
    if speed.first_token_s is not None and speed.prefill_tokens_per_s is not None:
        sentences.append(
            f"first token of a typical prompt after {speed.first_token_s:.1f} s, at "
            f"{speed.prefill_tokens_per_s:,.0f} tok/s of prefill"
        )
    if speed.throughput_tokens_per_s is not None and plan.setup.concurrency > 1:
        sentences.append(
            f"{plan.setup.concurrency} streams together: about {speed.throughput_tokens_per_s:.0f} tok/s"
        )
    return Section(f"Speed, {speed.mark}", tuple(sentences), speed.terms)


def _price(plan: Plan, recipe: Recipe) -> Section:
    price = plan.price
    total = price.all_in_usd_per_day.amount
    coin = price.billed.currency
    risen = "" if coin is Currency.USD else f" should {coin} rise by {COIN_RATE_MARGIN:.0%}"
    sentences = [
        f"billed: {price.billed}, {'spot' if price.is_spot else 'on demand'}",
        f"at most ${format_usd(price.first_day_usd)} on the first day{risen}, "
        f"${format_usd(price.running_usd_per_day)} on each day after",
    ]
    if price.usd_per_million_tokens is not None:
        is_busy = price.usd_per_million_tokens == usd_per_million(total, plan.speed, None)
        when = "always busy" if is_busy else "at the stated load"
        sentences.append(f"${format_usd(price.usd_per_million_tokens)} per million tokens, {when}")
    if price.break_even_tokens_per_day is not None and recipe.hosted_price is not None:
        reach = "in" if price.is_break_even_in_reach else "out of"
        sentences.append(
            f"a hosted API asks as much for {price.break_even_tokens_per_day:,} output tokens a day "
            f"[{Mark.COMPUTED}]: {reach} reach of this server"
        )
    sentences.extend(plan.reasons)
    sum_up = Term("all in", total, "USD/day", Mark.COMPUTED, "sum")
    return Section(f"Price: ${format_usd(total)} per day, all in", tuple(sentences), (*price.terms, sum_up))


def _in_gib(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """In GiB with two decimals, and the sum; of the exact bytes, so it may differ in the last digit."""
    shown = tuple(Term(t.name, _gib(t.value), "GiB", t.mark, t.source) for t in terms)
    total = sum((term.value for term in terms), Decimal(0))
    return (*shown, Term("needed", _gib(total), "GiB", Mark.COMPUTED, "sum")) if len(terms) > 1 else shown


def _gib(value: Decimal) -> Decimal:
    return (value / GIB).quantize(_HUNDREDTH)
