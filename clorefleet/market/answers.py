"""What an answer of the market means. Pure: an `Answer` in, a verdict out.

Theory. The verdict is `code` in the JSON body, whatever the HTTP status; only a body without one is judged
by its status. There are three verdicts, and the third is as real as the others:

    Accepted   code 0
    Rejected   the market said no, for certain; carries a typed error
    InDoubt    code 1, an unknown code, 5xx, or a body that cannot be read: an effect may have happened

A read that is in doubt has simply failed and may be repeated. An effect in doubt is settled by reading the
order list back, never by asking again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from clorefleet.domain.errors import (
    BadAnswer,
    BidStepTooLarge,
    InvalidRequest,
    MarketError,
    MarketUnreachable,
    OfferGone,
    OutOfFunds,
    PriceMoved,
    RateLimited,
    Refused,
    WrongApiKey,
)
from clorefleet.domain.text import clean_line
from clorefleet.market import wire
from clorefleet.market.transport import Answer

REASON_CHARS_MAX = 120


class Stake(Enum):
    """What a refusal of a call means for the user's money."""

    READ = ""
    RENT = "Nothing was rented and nothing was spent."
    CANCEL = "The order goes on costing until the market's list shows it ended."
    SPOT_PRICE = "The order keeps its price."


@dataclass(frozen=True, slots=True)
class Accepted:
    doc: wire.Fields


@dataclass(frozen=True, slots=True)
class Rejected:
    error: MarketError


@dataclass(frozen=True, slots=True)
class InDoubt:
    reason: str
    is_code_1: bool = False
    """The service's "database error", which it also gives to input it cannot digest."""
    is_unreadable: bool = False
    """The answer is not the market's JSON."""

    def as_read_error(self) -> MarketError:
        """For a call that changes nothing: it failed, and may be repeated."""
        kind = BadAnswer if self.is_unreadable else MarketUnreachable
        return kind(
            f"The market could not be read: {self.reason}.",
            remedy="Try again (a daemon does by itself); if it lasts, look at https://clore.ai.",
        )


Verdict = Accepted | Rejected | InDoubt


def judge(answer: Answer, stake: Stake) -> Verdict:
    try:
        doc = wire.parse(answer.body)
    except wire.NotJson:
        doc = None
    code = wire.whole(doc.get("code")) if isinstance(doc, dict) else None
    if code is None or not isinstance(doc, dict):
        return _by_status(answer, stake)
    match code:
        case 0:
            return Accepted(doc)
        case 1:
            return InDoubt("it answered with a database error (code 1)", is_code_1=True)
        case 2 | 4:
            return Rejected(_invalid(f"code {code}", stake))
        case 3:
            return Rejected(_wrong_key(stake))
        case 5:
            return Rejected(rate_limited(stake, answer.retry_after_s))
        case 6:
            return Rejected(_named(doc, stake))
        case _:
            return InDoubt(f"it answered with the unknown code {clean_line(code, max_chars=20)}")


def _by_status(answer: Answer, stake: Stake) -> Verdict:
    status = answer.status
    if status == 429:
        return Rejected(rate_limited(stake, answer.retry_after_s))
    if status == 401:
        return Rejected(_wrong_key(stake))
    if status == 403:
        # Seen by other clients: the edge refuses a User-Agent with the text `error code: 1010`.
        glimpse = clean_line(answer.body[:80].decode("utf-8", "replace"), max_chars=60)
        return Rejected(
            MarketUnreachable(
                f"The market's edge refused the request (HTTP 403: {glimpse or 'no text'}).",
                remedy="Try again later or from another network; the edge may block this address.",
                money=stake.value,
            )
        )
    if status in (400, 404, 405, 411, 413, 414, 415, 422):
        return Rejected(_invalid(f"HTTP {status}", stake))
    if 300 <= status < 400:
        return Rejected(
            BadAnswer(
                f"The market's address answers with a redirect (HTTP {status}), which is not followed.",
                remedy="Check api_url: it must be the API's own address, https://api.clore.ai/v1.",
                money=stake.value,
            )
        )
    if status >= 500 or status == 408:
        return InDoubt(f"it answered with HTTP {status} and no code")
    return InDoubt(f"its answer is not the market's JSON (HTTP {status})", is_unreadable=True)


def rate_limited(stake: Stake, retry_after_s: float | None) -> RateLimited:
    """Code 5. The call was not executed [assumed]."""
    return RateLimited(
        "The market's request limit was reached.",
        retry_after_s=retry_after_s,
        remedy="Wait some seconds; close other programs that use the same API key.",
        money=stake.value,
    )


def _wrong_key(stake: Stake) -> WrongApiKey:
    return WrongApiKey(
        "The market refuses the API key (code 3).",
        remedy="Make a new key on clore.ai and set CLORE_API_KEY, or api_key in config.toml.",
        money=stake.value,
    )


def _invalid(how: str, stake: Stake) -> InvalidRequest:
    return InvalidRequest(
        f"The market calls the request invalid ({how}).",
        remedy="This is a fault in clorefleet or a change of the market's API; please report it.",
        money=stake.value,
    )


@dataclass(frozen=True, slots=True)
class _Meaning:
    kind: type[MarketError]
    what: str
    remedy: str


_NEXT_PLAN = "Take the next plan; the fleet does so by itself."
_LIST_AGAIN = "List the offers again and plan with the new price."
NAMED: Mapping[str, _Meaning] = {
    "server-dont-exist": _Meaning(OfferGone, "The server is no longer on the market.", _NEXT_PLAN),
    "server-offline": _Meaning(OfferGone, "The server is offline.", _NEXT_PLAN),
    "server-already-rented": _Meaning(OfferGone, "Somebody else has rented the server.", _NEXT_PLAN),
    "not-enough-balance": _Meaning(
        OutOfFunds,
        "The wallet is too low for this order.",
        "Add funds in the order's currency on clore.ai, or plan with another currency.",
    ),
    "too-low-price": _Meaning(PriceMoved, "The bid is below the server's minimum.", _LIST_AGAIN),
    "cant-rent-from-yourself": _Meaning(Refused, "The server is the account's own.", _NEXT_PLAN),
    "you-already-have-spot-order": _Meaning(
        Refused,
        "The account already has a spot order on this server.",
        "Look at it with `clorefleet status`; cancel it first, or take another server.",
    ),
    "currency-not-allowed": _Meaning(
        Refused, "The server does not take this currency.", "Plan with another currency."
    ),
    "machine-is-on-gigaspot": _Meaning(
        Refused, "The server's spot market is on gigaspot, which clorefleet does not use.", _NEXT_PLAN
    ),
    "you-dont-own-this-order": _Meaning(
        Refused, "The order belongs to another account.", "Check the order id and the API key."
    ),
    "order-not-active": _Meaning(Refused, "The order has already ended.", "Nothing is left to do."),
    "order-dont-exist": _Meaning(Refused, "The market has no such order.", "Check the order id."),
    "issue-description-too-long": _Meaning(
        Refused, "The description of the trouble is too long.", "Shorten it to 2048 characters."
    ),
    "amount-too-low": _Meaning(Refused, "The price is below the server's minimum.", "Offer more."),
}
"""Refusals of code 6 by their normalised text. Source: the published API documentation."""
ALREADY_ENDED = frozenset({"order-not-active", "order-dont-exist"})


def _named(doc: wire.Fields, stake: Stake) -> MarketError:
    raw = wire.text(doc.get("error")) or wire.text(doc.get("message"))
    reason = normalise(raw)
    if reason == "can-lower-every-600-seconds":
        # Not `RateLimited`: it is about this order's price alone, and must not pause other requests.
        left = wire.number(doc.get("time_to_lowering"))
        return Refused(
            "The spot price was lowered less than 600 s ago.",
            reason=reason,
            remedy="Wait, then lower it again." if left is None else f"Lower it again in {left:.0f} s.",
            money=stake.value,
        )
    if reason == "exceeded-max-step":
        step = wire.number(doc.get("max_step"))
        told = "" if step is None else f" The largest step now is {step:f} per day."
        return BidStepTooLarge(
            f"The spot price cannot be lowered by so much at once.{told}",
            reason=reason,
            max_step=step,
            remedy="Lower it in smaller steps, 600 s apart.",
            money=stake.value,
        )
    meaning = NAMED.get(reason)
    if meaning is None and "price" in reason and ("required" in reason or "chang" in reason):
        # No such text is documented; one public client guards against these words.
        meaning = _Meaning(PriceMoved, "The price is no longer the approved one.", _LIST_AGAIN)
    if meaning is None:
        return Refused(
            f"The market refused: “{reason or 'no reason given'}”.",
            reason=reason,
            remedy="See the market's documentation for this word; another server may do.",
            money=stake.value,
        )
    if issubclass(meaning.kind, Refused):
        return meaning.kind(meaning.what, reason=reason, remedy=meaning.remedy, money=stake.value)
    return meaning.kind(meaning.what, remedy=meaning.remedy, money=stake.value)


def normalise(raw: str) -> str:
    """The service mixes hyphens and underscores; one spelling inside: lower case, hyphens."""
    return clean_line(raw, max_chars=REASON_CHARS_MAX).lower().replace("_", "-")
