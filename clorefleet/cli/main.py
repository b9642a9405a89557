"""The root command: finds the module of a subcommand and imports only that one.

Exit codes are those of `clorefleet.domain.errors.ExitCode` (docs/exit-codes.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from clorefleet import __version__
from clorefleet.cli.context import is_utf8, options
from clorefleet.cli.parameter import convert_what_must_be, describe

if TYPE_CHECKING:
    from clorefleet.domain.errors import ClorefleetError

COMMANDS: dict[str, str] = {
    "models": "List the models that have a recipe, show one, or draft a new one.",
    "recipes": "Check recipe files.",
    "offers": "List servers on the market.",
    "prices": "Show what GPUs cost now, what they cost before, and whether now is a good time.",
    "plan": "Show which setup would run a model, where, and at what price.",
    "deploy": "Put a model on the cheapest server that fits, and keep it there.",
    "init": "Write a fleet file to begin with. Nothing is rented by it.",
    "diff": "Show what a fleet file would change, and what that would cost. Changes nothing.",
    "apply": "Make the fleet what its file says, after showing what that costs.",
    "schedule": "Show when the number of replicas changes by the clock.",
    "optimize": "Show which replicas would pay to move to a cheaper server.",
    "simulate": "Simulate what a fleet would have cost over weeks of traffic, under several policies.",
    "status": "Show what runs, in which phase, and what it costs.",
    "dashboard": "Show the fleet in a browser on this machine, live; stop and scale there.",
    "logs": "Show what happened to a deployment, and its engine's log.",
    "diagnose": "Say what a log of an engine means, and what would cure it.",
    "ssh": "Open a shell on a replica's server.",
    "scale": "Keep another number of replicas of a deployment.",
    "stop": "Stop a deployment and everything it pays for.",
    "cost": "Show where the money went, what it bought, and what to change.",
    "report": "Show the cost report of the last week, or send it now.",
    "hosts": "Show what is remembered of servers; block or unblock one.",
    "wallet": "Show the balances and how long they last.",
    "budget": "Show or set the ceilings over the whole fleet.",
    "sweep": "Find orders that bill and that nothing wants, and end those that are ours for certain.",
    "adopt": "Take over an order that this machine's records have lost.",
    "db": "Look at, upgrade or back up the store.",
    "daemon": "Start, stop or look at the daemon.",
    "sandbox": "Serve, look at, stop or reset the simulated market.",
    "doctor": "Check key, market, wallet, time, hub, store, daemon, SSH and versions, "
    "and say what would mend them.",
}
"""Names and first help lines; a test holds them equal to the modules' own."""


def _remember(name: str) -> Callable[[Any], Any]:
    def callback(value: Any) -> Any:
        if value:
            setattr(options, name, value)
        return value

    return callback


_carrier = typer.Typer(rich_markup_mode=None, add_completion=False)


@_carrier.command()
def _common(
    sandbox: bool = typer.Option(
        False,
        "--sandbox",
        callback=_remember("sandbox"),
        expose_value=False,
        help="Use the simulated market on this machine.",
    ),
    as_json: bool = typer.Option(
        False,
        "--json",
        callback=_remember("as_json"),
        expose_value=False,
        help="Print JSON with a stable schema.",
    ),
    debug: bool = typer.Option(
        False, "--debug", callback=_remember("debug"), expose_value=False, help="Show tracebacks."
    ),
    no_color: bool = typer.Option(
        False,
        "--no-color",
        callback=_remember("no_color"),
        expose_value=False,
        help="Print without colour.",
    ),
    profile: str = typer.Option(
        "",
        "--profile",
        metavar="NAME",
        callback=_remember("profile_name"),
        expose_value=False,
        help="Use another profile's state and daemon.",
    ),
) -> None:
    """Carries the options that every command takes; never run."""


def common_params() -> list[Any]:
    """The parser's form of what `_common` carries; a command takes them behind its name, or before it."""
    params: list[Any] = list(typer.main.get_command(_carrier).params)
    describe(params, "")
    return params


class LazyGroup(TyperGroup):
    """Knows its commands by name; imports one when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        options.has_run, options.command = True, cmd_name
        module = import_module(f"clorefleet.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        if hasattr(command, "commands"):
            command.params.extend(common_params())
            convert_what_must_be(command)
        for each in getattr(command, "commands", {"": command}).values():
            describe(each.params, cmd_name)
            each.params.extend(common_params())
            convert_what_must_be(each)
            each.short_help = (each.help or "").partition("\n\n")[0]
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            from clorefleet.cli.nearest import did_you_mean
            from clorefleet.domain.errors import BadInput

            raise BadInput(
                f"There is no command “{name[:40]}”.",
                remedy=f"{did_you_mean(name, COMMANDS)}`clorefleet --help` lists them.",
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="clorefleet",
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Put a large language model on rented Clore.ai GPUs for the least money, and keep it there, "
        "safely.\n\nTry it without an account:\n\n"
        "  clorefleet deploy smollm2-135m --budget 16/day --sandbox"
    ),
    epilog="Every command takes --sandbox, --json, --debug, --no-color, --profile and --help, and shows "
    "examples with --help. All of it on one page: docs/commands.md.",
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"clorefleet {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def root() -> Any:
    """The whole command line as the parser sees it."""
    command = typer.main.get_command(app)
    command.params.extend(common_params())
    convert_what_must_be(command)
    return command


def main() -> int:
    """Run the command line; the exit code."""
    from clorefleet.domain.errors import ClorefleetError, ExitCode

    _print_what_the_locale_cannot()
    try:
        code = root()(standalone_mode=False, prog_name="clorefleet")
        sys.stdout.flush()
        _tell_what_does_not_end()
        _tell_of_an_older_sandbox()
        return int(code) if isinstance(code, int) else 0
    except ClorefleetError as error:
        if options.debug:
            raise
        _print_error(error)
        _tell_what_does_not_end()
        _tell_of_an_older_sandbox()
        return int(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError as error:
        return _broken_pipe(error)
    except SystemExit as end:
        # What the parser's library makes of a broken pipe; it ends the process for nothing else.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return _broken_pipe(end.__context__)
    except Exception as error:  # noqa: BLE001 - the program's edge: no traceback without --debug
        code = _foreign(error)
        _tell_what_does_not_end()
        return code


ACTS = frozenset({"deploy", "apply", "scale", "stop", "sweep", "adopt"})
"""Commands that rent or end, which a reader who leaves may have kept from it."""


def _broken_pipe(error: BrokenPipeError) -> int:
    """The reader of our output left (`clorefleet offers | head`): nothing to say, nobody to say it to."""
    from clorefleet.domain.errors import ExitCode

    left = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
    if not left:
        return _foreign(error)  # another pipe of ours broke
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in left:  # what they still hold is written when the process ends
        os.dup2(nothing, stream.fileno())
    return int(ExitCode.INTERRUPTED) if options.command in ACTS else 0


def _has_no_reader(stream: Any) -> bool:
    from select import POLLERR, POLLHUP, poll

    try:
        asked = poll()
        asked.register(stream.fileno(), 0)
        return any(event & (POLLERR | POLLHUP) for _, event in asked.poll(0))
    except (OSError, ValueError):
        return False  # it is no file


def _print_what_the_locale_cannot() -> None:
    """A letter that the terminal's encoding lacks is shown as `?`; it ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not is_utf8(stream):
            stream.reconfigure(errors="replace")


def _tell_what_does_not_end() -> None:
    """Orders whose cancel the market keeps refusing are shown by every command until they are gone."""
    if not options.has_run:
        return
    from clorefleet.daemon import unending
    from clorefleet.domain.errors import ClorefleetError

    try:
        orders = unending.known(options.profile().state_dir)
    except (ClorefleetError, OSError):
        return  # the command itself has said so
    for each in orders:
        sys.stderr.write(
            f"Order {each.order_id} still bills {each.per_hour}: {each.attempts} cancels did not end it "
            f"(last: {each.why}). It is asked again while the daemon runs; else end it on clore.ai.\n"
        )


def _tell_of_an_older_sandbox() -> None:
    """After an update of clorefleet the sandbox's server goes on as it was started."""
    if not (options.has_run and options.sandbox):
        return
    from clorefleet.domain.errors import ClorefleetError
    from clorefleet.sandbox import process

    try:
        text = process.outdated(options.profile().sandbox_dir)
    except ClorefleetError:
        return  # the command itself has said so
    if text:
        sys.stderr.write(text + "\n")


def _foreign(error: Exception) -> int:
    from clorefleet.domain.errors import ExitCode
    from clorefleet.domain.text import clean_line

    if hasattr(error, "exit_code") and hasattr(error, "show"):  # the parser's own usage errors
        if not error.exit_code or type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return int(ExitCode.USAGE) if error.exit_code else 0
        from clorefleet.cli.usage import as_bad_input, remember_profile

        remember_profile(sys.argv[1:])
        _print_error(as_bad_input(error))
        return int(ExitCode.USAGE)
    if type(error).__name__ == "Abort":
        sys.stderr.write("Nothing was done.\n")
        return int(ExitCode.INTERRUPTED)
    if options.debug:
        raise error
    sys.stderr.write(
        f"A fault in clorefleet: {type(error).__name__}: {clean_line(error)}\n"
        "Money: orders go on as they were; `clorefleet status` and `clorefleet stop` still work.\n"
        "Next:  run the same command with --debug and report what it prints.\n"
    )
    return int(ExitCode.INTERNAL)


def _print_error(error: ClorefleetError) -> None:
    if options.as_json:
        import json

        from clorefleet.report.commands import for_profile

        document = {
            "error": {
                "kind": type(error).__name__,
                "what": error.what,
                "money": for_profile(error.money, options.flag),
                "remedy": for_profile(error.remedy, options.flag),
                "fault": error.fault.value,
                "may_retry": error.may_retry,
                "exit_code": int(error.exit_code),
            }
        }
        text = json.dumps(document, indent=2, ensure_ascii=not is_utf8(sys.stdout))
        sys.stdout.write(text + "\n")
        return
    from clorefleet.cli.output import tell_error

    tell_error(error.what, money=error.money, remedy=error.remedy)
