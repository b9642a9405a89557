"""What stands for a parameter's value in help, and how the shell completes it: one table for all commands.

The same word means the same everywhere. Completion reads this machine only, never the market, and answers
with nothing rather than with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from clorefleet.cli.context import options


def _deployments() -> list[str]:
    from clorefleet.config.profile import store_url
    from clorefleet.store.glance import deployment_names

    return list(deployment_names(store_url(options.profile())))


def _servers() -> list[str]:
    from clorefleet.config.profile import store_url
    from clorefleet.store.glance import server_names

    return list(server_names(store_url(options.profile())))


def _foreign_orders() -> list[str]:
    from clorefleet.config.profile import store_url
    from clorefleet.store.glance import foreign_order_names

    return list(foreign_order_names(store_url(options.profile())))


def _profiles() -> list[str]:
    from clorefleet.config.places import state_root

    return sorted(each.name for each in state_root().iterdir() if each.is_dir())


def model_names() -> list[str]:
    from clorefleet.config.recipes import recipe_files

    return [file.stem for file in recipe_files()]


def _gpus() -> list[str]:
    from clorefleet.planner.gpus import load_gpus

    words = (word for model in load_gpus().models for word in model.match if any(map(str.isdigit, word)))
    return list(dict.fromkeys(word for word in words if len(word) > 2 or not word.isdigit()))


def _engines() -> list[str]:
    from clorefleet.domain.recipe import EngineName

    return [each.value for each in EngineName]


def _precisions() -> list[str]:
    from clorefleet.domain.recipe import Precision

    return [each.value for each in Precision]


def _objectives() -> list[str]:
    from clorefleet.domain.plan import Objective

    return [each.value for each in Objective]


def _sorts() -> list[str]:
    from clorefleet.cli.offers import SORTS

    return list(SORTS)


def _dimensions() -> list[str]:
    from clorefleet.domain.dimension import Dimension

    return [each.value for each in Dimension]


def _time_zones() -> list[str]:
    from zoneinfo import available_timezones

    return sorted(available_timezones())


Words = Callable[[], Iterable[str]]
_TIMES = ("today", "yesterday", "week", "month", "7d")
_OPTIONS: dict[str, tuple[str, Words | None]] = {
    "--budget": ("AMOUNT", None),
    "--max-price": ("AMOUNT", None),
    "--prefer": ("WORD", _objectives),
    "--precision": ("LIST", _precisions),
    "--engine": ("LIST", _engines),
    "--gpu": ("GPU", _gpus),
    "--country": ("LIST", None),
    "--exclude": ("LIST", None),
    "--load": ("TOKENS", None),
    "--context": ("TOKENS", None),
    "--min-speed": ("TOK/S", None),
    "--min-reliability": ("SHARE", None),
    "--min-vram": ("GIB", None),
    "--min-ram": ("GIB", None),
    "--min-cuda": ("VERSION", None),
    "--sort": ("WORD", _sorts),
    "--model": ("MODEL", model_names),
    "--name": ("NAME", None),
    "--take": ("NAME", _deployments),
    "--file": ("FILE", None),
    "--offers": ("FILE", None),
    "--plot": ("FILE", None),
    "--trace": ("FILE", None),
    "--prices": ("FILE", None),
    "--week": ("WORD", lambda: ("office", "evening", "flat")),
    "--slo-wait": ("SECONDS", None),
    "--slo-share": ("SHARE", None),
    "--scale": ("FACTOR", None),
    "--time-factor": ("FACTOR", None),
    "--reason": ("TEXT", None),
    "--by": ("WHAT", _dimensions),
    "--since": ("WHEN", lambda: _TIMES),
    "--until": ("WHEN", lambda: _TIMES),
    "--tz": ("ZONE", _time_zones),
    "--period": ("WORD", lambda: ("day", "week", "month")),
    "--format": ("WORD", lambda: ("text", "html", "csv")),
    "--profile": ("NAME", _profiles),
    "--log-format": ("WORD", lambda: ("text", "json")),
}
_ARGUMENTS: dict[str, tuple[str, Words | None]] = {
    "deployment": ("DEPLOYMENT", _deployments),
    "model": ("MODEL", model_names),
    "fleet_or_model": ("FLEET_OR_MODEL", model_names),
    "server": ("SERVER", _servers),
    "order_id": ("ORDER", _foreign_orders),
    "gpu": ("GPU", _gpus),
    "file": ("FILE", None),
    "files": ("FILE", None),
    "command": ("COMMAND", None),
}
_NAMES_A_MODEL = frozenset({"models"})
"""Where the argument `name` is a model; everywhere else it is a deployment."""


def describe(params: Iterable[Any], command: str) -> None:
    """Name the values of a command's parameters, and say how they are completed."""
    for param in params:
        if param.param_type_name == "argument":
            name = param.name
            if name == "name":
                name = "model" if command in _NAMES_A_MODEL else "deployment"
            metavar, words = _ARGUMENTS.get(name, (name.upper(), None))
        elif getattr(param, "is_flag", False) or getattr(param, "count", False):
            continue
        else:
            metavar, words = _OPTIONS.get(max(param.opts, key=len), ("", None))
            metavar = metavar or ("N" if param.type_descriptor.annotation in (int, float) else "VALUE")
        param.metavar = param.metavar or metavar
        if words is not None:
            param._custom_shell_complete = _completion(words)


def convert_what_must_be(command: Any) -> None:
    """Let a value that is absent, or of its type already, pass a command's parser without conversion.

    The conversion imports pydantic, a third of the time that `status` takes, also to find that text is text
    and that no --help is no help.
    """
    params_of = command.get_params

    def get_params(context: Any) -> list[Any]:
        found: list[Any] = params_of(context)
        for each in found:
            if "process_value" not in vars(each):
                each.process_value = _processing(each)
        return found

    command.get_params = get_params


def _processing(param: Any) -> Callable[[Any, Any], Any]:
    convert, kind = param.process_value, param.type_descriptor.annotation
    if param.multiple or param.nargs != 1 or kind not in (str, int, float, bool):
        return convert  # type: ignore[no-any-return]

    def process(context: Any, value: Any) -> Any:
        is_there = type(value) is kind
        if not is_there and (value is not None or param.required):
            return convert(context, value)
        return value if param.callback is None else param.callback(context, param, value)

    return process


def _completion(words: Words) -> Callable[[Any, Any, str], list[str]]:
    def complete(_context: Any, _param: Any, incomplete: str) -> list[str]:
        head, comma, tail = incomplete.rpartition(",")
        try:
            known = list(words())
        except Exception:  # noqa: BLE001 - a shell that completes has nowhere to show an error
            return []
        return [head + comma + each for each in known if each.lower().startswith(tail.lower())]

    return complete
