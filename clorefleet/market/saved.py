"""A `marketplace` answer saved to a file, to plan on without a network."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from clorefleet.domain.offer import DOCUMENTED_FEES, MarketView
from clorefleet.market import convert, wire
from clorefleet.market.bulk import table_of_answer

SAVED_BYTES_MAX = 256 << 20


class NotAnAnswer(ValueError):
    """The file is not a `marketplace` answer; the text says why, without what it holds."""


def view_of_saved_answer(file: Path) -> MarketView:
    """Offers and coin rates as they were, at the documented fees; read at the file's own time.

    Raises:
        OSError: it cannot be read.
        NotAnAnswer: it is something else.
    """
    status = file.stat()
    if status.st_size > SAVED_BYTES_MAX:
        raise NotAnAnswer(f"it is larger than {SAVED_BYTES_MAX >> 20} MiB")
    read_at = datetime.fromtimestamp(status.st_mtime, UTC)
    try:
        body = file.read_bytes()
        table = table_of_answer(body, read_at=read_at, needs_code=False)
        if table is not None:
            return MarketView(offers=table, rates=table.rates, fees=DOCUMENTED_FEES, read_at=read_at)
        document = wire.fields(wire.parse(body))
    except wire.NotJson as error:
        raise NotAnAnswer("it is not JSON") from error
    if not isinstance(document.get("servers"), list):
        raise NotAnAnswer("it has no list of servers")
    servers = wire.read_marketplace(document).records
    rates = convert.coin_rates(servers, read_at=read_at)
    offers = tuple(convert.offer(server, rates) for server in servers)
    return MarketView(offers=offers, rates=rates, fees=DOCUMENTED_FEES, read_at=read_at)
