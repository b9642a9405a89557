"""The options that say what is wanted of a plan, as `plan` and `deploy` share them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clorefleet.domain.plan import Requirement

Model = Annotated[str, typer.Argument(help="A name from `clorefleet models`.")]
Budget = Annotated[str, typer.Option("--budget", "-b", help="A ceiling in USD: 16/day, 0.7/hour, 500/month.")]
Prefer = Annotated[str, typer.Option("--prefer", help="cost | speed | quality | value")]
Precisions = Annotated[str, typer.Option("--precision", help="Only these, separated by commas: fp8,bf16,q4.")]
Context = Annotated[int, typer.Option("--context", min=0, help="At least this many tokens of context.")]
MinSpeed = Annotated[float, typer.Option("--min-speed", min=0, help="Tokens/s for one stream, at least.")]
MinReliability = Annotated[float, typer.Option("--min-reliability", min=0, max=1)]
Gpu = Annotated[str, typer.Option("--gpu", help="GPU name contains this.")]
Country = Annotated[str, typer.Option("--country", help="ISO codes, separated by commas.")]
Spot = Annotated[bool, typer.Option("--spot", help="Spot offers too; they can be taken away any time.")]


@dataclass(frozen=True, slots=True)
class Wishes:
    model: str
    budget: str = ""
    prefer: str = "cost"
    precisions: str = ""
    context: int = 0
    min_speed: float = 0
    min_reliability: float = 0
    gpu: str = ""
    country: str = ""
    spot: bool = False

    def requirement(self) -> Requirement:
        """
        Raises:
            BadInput: for a word that is none of the known ones; BadBudget for the budget.
        """
        from clorefleet.domain.errors import BadInput
        from clorefleet.domain.money import parse_budget
        from clorefleet.domain.plan import Objective, Requirement
        from clorefleet.domain.recipe import Precision

        objectives = [each.value for each in Objective]
        if self.prefer not in objectives:
            raise BadInput(f"I cannot prefer “{self.prefer}”.", remedy=f"Use {', '.join(objectives)}.")
        known = [each.value for each in Precision]
        wanted = [word.strip().lower() for word in self.precisions.split(",") if word.strip()]
        for word in wanted:
            if word not in known:
                raise BadInput(f"“{word}” is not a precision.", remedy=f"Use {', '.join(known)}.")
        return Requirement(
            model=self.model,
            budget=parse_budget(self.budget) if self.budget else None,
            objective=Objective(self.prefer),
            precisions=tuple(Precision(word) for word in wanted),
            min_context_tokens=self.context or None,
            min_decode_tokens_per_s=self.min_speed or None,
            min_reliability=Decimal(str(self.min_reliability)) if self.min_reliability else None,
            countries=tuple(code.strip().upper() for code in self.country.split(",") if code.strip()),
            gpu=self.gpu,
            spot=self.spot,
        )
