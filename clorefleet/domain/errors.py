"""Every error that a user or a caller can meet.

    ClorefleetError                 what happened, whose fault, may it be retried, the remedy
    ├── BadInput                    the user's words: usage, budget, unknown model, recipe
    │   ├── BadBudget
    │   ├── UnknownModel
    │   ├── BadRecipe
    │   └── NeedsConfirmation       no terminal and no --yes
    ├── ConfigError                 files and environment of this machine
    │   └── NoApiKey
    ├── NothingFits                 no plan inside the constraints; says what would
    ├── BudgetExceeded              an effect would pass a ceiling
    ├── MarketError                 the market's answers; see below
    │   ├── MarketUnreachable       no answer to a read
    │   ├── BadAnswer               an answer that is not the market's JSON
    │   ├── WrongApiKey             code 3
    │   ├── InvalidRequest          code 2 and 4
    │   ├── RateLimited             code 5
    │   ├── OfferGone               rented by another, offline, withdrawn
    │   ├── PriceMoved              the price is not the approved one
    │   ├── OutOfFunds              not_enough_balance
    │   ├── Refused                 any other named refusal (code 6)
    │   └── OutcomeUnknown          the effect may or may not have happened
    ├── NodeError                   a rented server; the host's fault unless said otherwise
    │   ├── NodeUnreachable
    │   ├── HostKeyChanged
    │   ├── WrongNonce
    │   ├── KeyGone                 ours to that server
    │   ├── CommandFailed
    │   ├── OutputTooLarge
    │   └── WeightsFailed
    ├── StoreError                  our own durable state
    │   ├── StoreBusy
    │   └── LostLeadership          another daemon holds the fencing token
    ├── DaemonError
    └── SandboxError

A class exists when a caller acts differently on it. `exit_code` is what the command line returns;
`docs/exit-codes.md` lists them and a test compares.
"""

from __future__ import annotations

from decimal import Decimal
from enum import Enum, IntEnum


class Fault(Enum):
    USER = "user"
    US = "clorefleet"
    MARKET = "market"
    HOST = "host"


class ExitCode(IntEnum):
    OK = 0
    INTERNAL = 1
    USAGE = 2
    NOTHING_FITS = 3
    BUDGET = 4
    CREDENTIALS = 5
    MARKET = 6
    NODE = 7
    STATE = 8
    NEEDS_CONFIRMATION = 9
    NOT_READY = 10
    FUNDS = 11
    ORPHANS = 12
    INTERRUPTED = 130


class ClorefleetError(Exception):
    """Base of all; never raised itself.

    Attributes:
        what: what happened, one sentence.
        remedy: the next thing to type or do, one sentence.
        money: what it means for the user's money, or "" where nothing can have been spent.
        fault: whose doing it was.
        may_retry: the same call may succeed later and is safe to repeat.
    """

    fault: Fault = Fault.US
    may_retry: bool = False
    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, what: str, *, remedy: str = "", money: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.money = money


class BadInput(ClorefleetError):
    fault = Fault.USER
    exit_code = ExitCode.USAGE


class BadBudget(BadInput):
    def __init__(self, text: str, why: str) -> None:
        super().__init__(
            f"I cannot read the budget “{text}”: {why}.",
            remedy="Write an amount of USD and a period: --budget 16/day, 0.7/hour or 500/month.",
        )


class UnknownModel(BadInput):
    def __init__(self, name: str, nearest: tuple[str, ...] = ()) -> None:
        hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
        super().__init__(
            f"There is no recipe for “{name}”.",
            remedy=f"{hint}`clorefleet models` lists all of them.",
        )
        self.nearest = nearest


class BadRecipe(BadInput):
    """A recipe file that cannot be used; names file, line and field."""

    def __init__(self, file: str, line: int | None, field: str, why: str) -> None:
        place = f"{file}:{line}" if line else file
        super().__init__(
            f"{place}: {field}: {why}",
            remedy="Correct the file; `clorefleet models` reads all recipes again.",
        )
        self.file, self.line, self.field = file, line, field


class NeedsConfirmation(BadInput):
    exit_code = ExitCode.NEEDS_CONFIRMATION

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} needs a yes, and there is no terminal to ask at.",
            remedy="Add --yes if you mean it.",
            money="Nothing was changed and nothing was spent.",
        )


class ConfigError(ClorefleetError):
    fault = Fault.USER
    exit_code = ExitCode.USAGE


class NoApiKey(ConfigError):
    exit_code = ExitCode.CREDENTIALS

    def __init__(self, remedy: str) -> None:
        super().__init__("There is no Clore API key.", remedy=remedy, money="Nothing was spent.")


class NothingFits(ClorefleetError):
    fault = Fault.USER
    exit_code = ExitCode.NOTHING_FITS


class BudgetExceeded(ClorefleetError):
    fault = Fault.USER
    exit_code = ExitCode.BUDGET


class MarketError(ClorefleetError):
    fault = Fault.MARKET
    exit_code = ExitCode.MARKET


class MarketUnreachable(MarketError):
    may_retry = True


class BadAnswer(MarketError):
    may_retry = True


class WrongApiKey(MarketError):
    fault = Fault.USER
    exit_code = ExitCode.CREDENTIALS


class InvalidRequest(MarketError):
    fault = Fault.US


class RateLimited(MarketError):
    """Code 5. `retry_after_s` is the market's wish, or None."""

    may_retry = True

    def __init__(
        self, what: str, *, retry_after_s: float | None = None, remedy: str = "", money: str = ""
    ) -> None:
        super().__init__(what, remedy=remedy, money=money)
        self.retry_after_s = retry_after_s


class OfferGone(MarketError):
    """The server cannot be had: another renter was faster, or it is offline. Take the next plan."""


class PriceMoved(MarketError):
    """The price is not the one that was approved. Nothing may be rented at another price."""


class OutOfFunds(MarketError):
    fault = Fault.USER
    exit_code = ExitCode.FUNDS


class Refused(MarketError):
    """A named refusal (code 6) without a class of its own; `reason` is the normalised string."""

    def __init__(self, what: str, *, reason: str, remedy: str = "", money: str = "") -> None:
        super().__init__(what, remedy=remedy, money=money)
        self.reason = reason


class BidStepTooLarge(Refused):
    """A spot bid may fall by at most `max_step` at once: per day, in the order's currency; None: not told."""

    def __init__(self, what: str, *, reason: str, max_step: Decimal | None, remedy: str, money: str) -> None:
        super().__init__(what, reason=reason, remedy=remedy, money=money)
        self.max_step = max_step


class OutcomeUnknown(MarketError):
    """The request may have taken effect: read the order list back before anything else."""


class NodeError(ClorefleetError):
    fault = Fault.HOST
    exit_code = ExitCode.NODE


class NodeUnreachable(NodeError):
    may_retry = True


class HostKeyChanged(NodeError):
    """The host's key is not the pinned one: end the trust, never prompt through."""


class WrongNonce(NodeError):
    """The machine that answers is not the one the order's environment was given to."""


class KeyGone(NodeError):
    """Our own key to the server is not on this machine."""


class CommandFailed(NodeError):
    def __init__(
        self, what: str, *, exit_status: int | None, output_tail: str = "", remedy: str = ""
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.exit_status = exit_status
        self.output_tail = output_tail


class OutputTooLarge(NodeError):
    """A command printed more than its bound; its channel was closed."""


class WeightsFailed(NodeError):
    """Weights could not be had or verified; `cause` is one of the codes of `node.weights`."""

    def __init__(self, what: str, *, cause: str, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.cause = cause


class StoreError(ClorefleetError):
    exit_code = ExitCode.STATE


class StoreBusy(StoreError):
    may_retry = True


class LostLeadership(StoreError):
    """Another process holds the fencing token; this one must write nothing more."""


class DaemonError(ClorefleetError):
    exit_code = ExitCode.STATE


class SandboxError(ClorefleetError):
    exit_code = ExitCode.STATE


class HubError(ClorefleetError):
    """The model hub cannot be reached, lacks what was asked for, or answers nonsense."""

    fault = Fault.HOST
    exit_code = ExitCode.MARKET
