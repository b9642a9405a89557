"""The options that say what is wanted of a plan: the same on every command that plans."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clorefleet.cli.nearest import did_you_mean

if TYPE_CHECKING:
    from clorefleet.domain.plan import Requirement
    from clorefleet.domain.recipe import EngineName, Precision

LOAD_MAX_TOKENS = 10**15


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was typed; `requirement` makes values of it."""

    model: Annotated[
        str, typer.Argument(help="A name from `clorefleet models`; NAME:WEIGHTS for these alone.")
    ]
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="A ceiling in USD: 16/day, 0.7/hour, 500/month.")
    ] = ""
    prefer: Annotated[str, typer.Option("--prefer", help="cost | speed | quality | value")] = "cost"
    precision: Annotated[
        str, typer.Option("--precision", help="Only these, by commas: fp8,bf16,q4. `q5+`: q5 or better.")
    ] = ""
    context: Annotated[
        int, typer.Option("--context", min=0, help="At least this many tokens of context.")
    ] = 0
    min_speed: Annotated[
        float, typer.Option("--min-speed", min=0, help="Tokens/s for one stream, at least.")
    ] = 0
    min_reliability: Annotated[
        float | None,
        typer.Option(
            "--min-reliability", min=0, max=1, help="Share of the time that the host was up; else 0.9."
        ),
    ] = None
    gpu: Annotated[str, typer.Option("--gpu", help="GPU name contains this.")] = ""
    country: Annotated[str, typer.Option("--country", help="ISO codes, separated by commas.")] = ""
    exclude: Annotated[str, typer.Option("--exclude", help="Never these servers: numbers, by commas.")] = ""
    engine: Annotated[
        str, typer.Option("--engine", help="Only these, by commas: sglang,vllm,llama.cpp,ktransformers.")
    ] = ""
    hedge: Annotated[
        bool, typer.Option("--hedge", help="Rent two servers, if the budget allows; keep the first ready.")
    ] = False
    spot: Annotated[
        bool, typer.Option("--spot", help="Spot offers too; they can be taken away any time.")
    ] = False
    spot_only: Annotated[bool, typer.Option("--spot-only", help="Spot offers and no others.")] = False
    load: Annotated[
        str, typer.Option("--load", help="Output tokens you expect: 500k/day, 20M/day. For USD per Mtok.")
    ] = ""

    def requirement(self) -> Requirement:
        """
        Raises:
            BadInput: for a word that is none of the known ones; BadBudget for the budget.
        """
        from clorefleet.domain.errors import BadInput
        from clorefleet.domain.money import parse_budget
        from clorefleet.domain.plan import Objective, Requirement

        objectives = [each.value for each in Objective]
        if self.prefer not in objectives:
            hint = did_you_mean(self.prefer, objectives)
            raise BadInput(
                f"I cannot prefer “{self.prefer[:40]}”.", remedy=f"{hint}Use {', '.join(objectives)}."
            )
        return Requirement(
            model=self.model,
            budget=parse_budget(self.budget) if self.budget else None,
            objective=Objective(self.prefer),
            precisions=_precisions(self.precision),
            min_context_tokens=self.context or None,
            min_decode_tokens_per_s=self.min_speed or None,
            min_reliability=None if self.min_reliability is None else Decimal(str(self.min_reliability)),
            countries=countries(self.country),
            gpu=self.gpu,
            engines=_engines(self.engine),
            hedge=self.hedge,
            spot=self.spot or self.spot_only,
            spot_only=self.spot_only,
            excluded_servers=_servers(self.exclude),
            load_tokens_per_day=_load(self.load),
        )


def takes_wishes(*required: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `Wishes` in place of its first parameter, `wishes`.

    `required` options have no default on this command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(Wishes, include_extras=True)
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        wanted = [
            inspect.Parameter(
                each.name,
                keyword,
                default=inspect.Parameter.empty
                if each.default is MISSING or each.name in required
                else each.default,
                annotation=hints[each.name],
            )
            for each in fields(Wishes)
        ]

        @wraps(command)
        def with_wishes(**given: Any) -> None:
            wishes = Wishes(**{each.name: given.pop(each.name) for each in fields(Wishes)})
            command(wishes, **given)

        parameters = [*wanted, *(each.replace(kind=keyword) for each in own)]
        with_wishes.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_wishes.__annotations__ = {each.name: each.annotation for each in parameters}
        del with_wishes.__wrapped__
        return with_wishes

    return decorate


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def countries(text: str) -> tuple[str, ...]:
    """`DE,SE`: the market tells countries by the two letters of ISO 3166."""
    from clorefleet.domain.errors import BadInput

    for word in _words(text):
        if not (len(word) == 2 and word.isascii() and word.isalpha()):
            raise BadInput(
                f"“{word[:40]}” is not a country's code.", remedy="Write two letters each: --country DE,SE."
            )
    return tuple(_words(text.upper()))


def _precisions(text: str) -> tuple[Precision, ...]:
    """`fp8,q4` are these two; `q5+` is q5 and everything better."""
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.recipe import Precision
    from clorefleet.planner.preference import QUALITY

    wanted: list[Precision] = []
    for word in _words(text.lower()):
        name = word.removesuffix("+")
        if name not in {each.value for each in Precision}:
            known = ", ".join(each.value for each in QUALITY)
            raise BadInput(
                f"“{word[:40]}” is not a precision.",
                remedy=f"{did_you_mean(name, known.split(', '))}Use {known}; q5+ is q5 or better.",
            )
        precision = Precision(name)
        better = QUALITY[: QUALITY.index(precision) + 1] if word.endswith("+") else (precision,)
        wanted.extend(each for each in better if each not in wanted)
    return tuple(wanted)


def _engines(text: str) -> tuple[EngineName, ...]:
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.recipe import EngineName

    known = {each.value: each for each in EngineName} | {"llamacpp": EngineName.LLAMACPP}
    for word in _words(text.lower()):
        if word not in known:
            names = ", ".join(each.value for each in EngineName)
            raise BadInput(
                f"“{word[:40]}” is not an engine that clorefleet starts.",
                remedy=f"{did_you_mean(word, known)}Use {names}.",
            )
    return tuple(dict.fromkeys(known[word] for word in _words(text.lower())))


def _servers(text: str) -> tuple[int, ...]:
    from clorefleet.domain.errors import BadInput

    for word in _words(text):
        if not (word.isascii() and word.isdigit() and len(word) < 19):
            raise BadInput(f"“{word[:40]}” is not a server's number.", remedy="Write --exclude 20014,20051.")
    return tuple(int(word) for word in _words(text))


def _load(text: str) -> int | None:
    """`500k/day`, `20M` or `1500000`: output tokens a day."""
    from clorefleet.domain.errors import BadInput

    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([kMGB]?)(?:/day)?", text.strip(), re.ASCII)
    unit = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
    tokens = int(Decimal(match[1]) * unit[match[2]]) if match else 0
    if not 0 < tokens <= LOAD_MAX_TOKENS:
        raise BadInput(
            f"“{text[:40]}” is not a load.", remedy="Write tokens a day: --load 500k/day or 20M/day."
        )
    return tokens
