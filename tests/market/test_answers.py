"""What an answer means: the code in the body first, the status only without one."""

from __future__ import annotations

import json

import pytest

from clorefleet.domain.errors import (
    BadAnswer,
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
from clorefleet.market.answers import NAMED, Accepted, InDoubt, Rejected, Stake, judge
from clorefleet.market.transport import Answer


def _body(**doc: object) -> bytes:
    return json.dumps(doc).encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, _body(code=0)),
        (500, _body(code=0)),
        (404, _body(code="0", orders=[])),
        (200, _body(code=0, error=None)),
    ],
)
def test_code_0_is_yes_whatever_the_status(status: int, body: bytes) -> None:
    assert isinstance(judge(Answer(status, body), Stake.RENT), Accepted)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, _body(code=1)),
        (500, _body(code=1, error="database error")),
        (200, _body(code=7)),
        (200, _body(code=None)),
        (200, _body(orders=[])),
        (200, b"[0]"),
        (200, b'{"code":0'),
        (200, b""),
        (200, b"<html>ok</html>"),
        (200, b"[" * 100_000),
        (204, b""),
        (408, b""),
        (500, b"<html>"),
        (502, b""),
        (503, _body(status="busy")),
        (520, b"cloudflare"),
    ],
)
def test_an_answer_after_which_an_order_may_exist_is_in_doubt(status: int, body: bytes) -> None:
    verdict = judge(Answer(status, body), Stake.RENT)
    assert isinstance(verdict, InDoubt)
    assert verdict.as_read_error().may_retry


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, _body(code=2), InvalidRequest),
        (400, _body(code=2), InvalidRequest),
        (200, _body(code=3), WrongApiKey),
        (401, _body(code=3), WrongApiKey),
        (404, _body(code=4), InvalidRequest),
        (200, _body(code=5), RateLimited),
        (429, _body(code=5), RateLimited),
        (429, b"slow down", RateLimited),
        (401, b"", WrongApiKey),
        (403, b"error code: 1010", MarketUnreachable),
        (404, b"<html>", InvalidRequest),
        (301, b"", BadAnswer),
        (302, _body(message="moved"), BadAnswer),
        (200, _body(code=6, error="server-offline"), OfferGone),
        (200, _body(code=6, error="server_already_rented"), OfferGone),
        (500, _body(code=6, error="Server-Dont-Exist"), OfferGone),
        (200, _body(code=6, error="not_enough_balance"), OutOfFunds),
        (200, _body(code=6, error="not-enough-balance"), OutOfFunds),
        (200, _body(code=6, message="not_enough_balance"), OutOfFunds),
        (200, _body(code=6, error="too_low_price"), PriceMoved),
        (200, _body(code=6, error="required price does not match"), PriceMoved),
        (200, _body(code=6, error="price_has_changed"), PriceMoved),
        (200, _body(code=6, error="currency-not-allowed"), Refused),
        (200, _body(code=6, error="brand_new_reason"), Refused),
        (200, _body(code=6), Refused),
        (200, _body(code=6, error=["x"]), Refused),
    ],
)
def test_a_certain_no_carries_its_typed_error(status: int, body: bytes, kind: type[MarketError]) -> None:
    verdict = judge(Answer(status, body), Stake.RENT)
    assert isinstance(verdict, Rejected)
    assert type(verdict.error) is kind
    assert verdict.error.money == "Nothing was rented and nothing was spent."
    assert verdict.error.remedy.endswith(".")
    assert verdict.error.what.endswith(".")


@pytest.mark.parametrize("reason", sorted(NAMED))
@pytest.mark.parametrize("separator", ["-", "_"])
def test_each_known_refusal_is_known_in_both_spellings(reason: str, separator: str) -> None:
    verdict = judge(Answer(200, _body(code=6, error=reason.replace("-", separator))), Stake.RENT)
    assert isinstance(verdict, Rejected)
    assert type(verdict.error) is NAMED[reason].kind
    if isinstance(verdict.error, Refused):
        assert verdict.error.reason == reason


def test_a_hostile_reason_is_made_harmless_and_short() -> None:
    verdict = judge(Answer(200, _body(code=6, error="\x1b]0;x\x07" + "A" * 9000)), Stake.READ)
    assert isinstance(verdict, Rejected)
    assert verdict.error.what.isprintable()
    assert len(verdict.error.what) < 200


def test_the_spot_refusals_tell_their_figures_and_do_not_pause_other_requests() -> None:
    lowering = judge(
        Answer(200, _body(code=6, error="can_lower_every_600_seconds", time_to_lowering=412)),
        Stake.SPOT_PRICE,
    )
    assert isinstance(lowering, Rejected)
    assert isinstance(lowering.error, Refused)
    assert "412" in lowering.error.remedy
    step = judge(
        Answer(200, b'{"code":6,"error":"exceeded_max_step","max_step":0.00000100}'), Stake.SPOT_PRICE
    )
    assert isinstance(step, Rejected)
    assert "0.00000100" in step.error.what


def test_the_markets_wish_to_wait_is_kept() -> None:
    verdict = judge(Answer(429, _body(code=5), retry_after_s=7.0), Stake.READ)
    assert isinstance(verdict, Rejected)
    assert isinstance(verdict.error, RateLimited)
    assert verdict.error.retry_after_s == 7.0
