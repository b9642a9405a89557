"""The arithmetic of a plan as data, for whoever prints it."""

from __future__ import annotations

from dataclasses import dataclass

from clorefleet.domain.plan import Plan, Term
from clorefleet.domain.recipe import EngineName, Recipe


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    sentences: tuple[str, ...]
    terms: tuple[Term, ...] = ()


def explain(plan: Plan, recipe: Recipe) -> tuple[Section, ...]:
    """Setup, memory, speed and price of a plan, each figure with its mark and source."""
    setup = plan.setup
    checkpoint = recipe.checkpoint(setup.checkpoint)
    where = "of the GPU with the least to spare" if setup.engine is EngineName.LLAMACPP else "per GPU"
    how = [
        f"{checkpoint.format} from {setup.repo}, {checkpoint.bytes / 1e9:,.1f} GB [{checkpoint.bytes_mark}]",
        f"{setup.engine} in {setup.image}, {setup.tensor_parallel} GPU(s), "
        f"context {setup.context_tokens:,} x {setup.concurrency} request(s), KV in {setup.kv_dtype}",
    ]
    if setup.experts_in_ram:
        how.append(f"experts of {len(setup.experts_in_ram)} layers stay in RAM")
    if setup.speculation is not None:
        each = setup.speculation
        how.append(f"{each.algorithm} speculation {each.num_steps}/{each.top_k}/{each.num_draft_tokens}")
    return (
        Section(f"Setup on server {plan.offer.server_id} ({plan.offer.gpu_summary})", tuple(how)),
        Section(f"Memory {where}", (), plan.fit.memory_per_gpu),
        Section("RAM", (), plan.fit.ram),
        Section("Disk", (), plan.fit.disk),
        Section(
            f"Speed: {plan.speed.decode_tokens_per_s:.1f} tok/s for one stream, predicted",
            (),
            plan.speed.terms,
        ),
        Section(
            f"Price: ${plan.price.all_in_usd_per_day.amount:,.2f} per day, all in",
            (
                f"at most ${plan.price.first_day_usd:,.2f} on the first day, "
                f"${plan.price.running_usd_per_day:,.2f} on each day after",
                *plan.reasons,
            ),
            plan.price.terms,
        ),
    )
