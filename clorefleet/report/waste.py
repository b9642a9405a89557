"""Money that bought nothing, with the next step that would save it. Pure.

The kinds share no charge, so that they may be added up. What a replica cost that is still starting is not
waste yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.books import Books
from clorefleet.domain.duration import in_words
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.text import clean_line
from clorefleet.report.charges import Charge, Stage, exact_sum

LEAST_USD = Decimal("0.01")
"""Less is not worth a sentence."""
START_UP_SHARE = Decimal("0.2")
"""Of a deployment's whole spending, from which on its start-ups are worth one."""
RULE_AFTER = timedelta(minutes=30)
"""Of the idle rule that is advised: one that is quicker would end what a start-up has just been paid for."""
_REASON_MAX_CHARS = 100


class WasteKind(StrEnum):
    IDLE = "idle"
    """Ready, and no request in the whole hour."""
    HOST_FAILED = "host failed"
    """Leases that never served, given back because of their server."""
    NEVER_SERVED = "never served"
    """Leases that ended before they served, for any other reason."""
    START_UP = "start-up"
    """Paid start-ups of replicas that did serve, where they are a large part of all."""


@dataclass(frozen=True, slots=True)
class Waste:
    kind: WasteKind
    subject: str
    """The deployment; for a failed host the server."""
    usd: Decimal
    lasted: timedelta
    what: str
    """One sentence."""
    advice: str
    """What would save it; a command or a setting."""


def waste(found: Iterable[Charge], books: Books) -> tuple[Waste, ...]:
    """Dearest first."""
    charges = tuple(found)
    served = {entry.lease_id for entry in books.phases if entry.phase is Phase.SERVING}
    spent: dict[DeploymentId, list[Charge]] = {}
    idle: dict[DeploymentId, list[Charge]] = {}
    start_ups: dict[DeploymentId, list[Charge]] = {}
    failed: dict[str, list[Charge]] = {}
    unserved: dict[DeploymentId, list[Charge]] = {}
    for charge in charges:
        spent.setdefault(charge.deployment_id, []).append(charge)
        lease = books.leases.get(charge.lease_id)
        if lease is None or charge.stage is Stage.UNRECORDED:
            continue
        if charge.lease_id in served or lease.measured_tokens_per_s is not None:
            if charge.stage is Stage.IDLE:
                idle.setdefault(charge.deployment_id, []).append(charge)
            elif charge.stage is Stage.BOOTSTRAP:
                start_ups.setdefault(charge.deployment_id, []).append(charge)
        elif lease.phase in (Phase.DRAINING, Phase.ENDED):
            if lease.blocks_host:
                failed.setdefault(str(lease.server_id), []).append(charge)
            else:
                unserved.setdefault(charge.deployment_id, []).append(charge)
    found_waste = [
        *(_idle(name, each, spent[name], books) for name, each in idle.items()),
        *(_failed(server, each, books) for server, each in failed.items()),
        *(_unserved(name, each, books) for name, each in unserved.items()),
        *(
            _start_up(name, each)
            for name, each in start_ups.items()
            if _usd(each) >= START_UP_SHARE * _usd(spent[name])
        ),
    ]
    worth_a_word = (each for each in found_waste if each.usd >= LEAST_USD)
    return tuple(sorted(worth_a_word, key=lambda each: (-each.usd, each.kind, each.subject)))


def _usd(charges: Iterable[Charge]) -> Decimal:
    return exact_sum(charge.usd for charge in charges)


def _lasted(charges: Iterable[Charge]) -> timedelta:
    return sum((charge.lasted for charge in charges), timedelta(0))


def _idle(name: DeploymentId, charges: list[Charge], all_charges: list[Charge], books: Books) -> Waste:
    usd, lasted = _usd(charges), _lasted(charges)
    share = 100 * usd / (_usd(all_charges) or Decimal(1))
    deployment = next((each for each in books.deployments if each.deployment_id == name), None)
    rule = None if deployment is None else deployment.idle
    longest = _longest_stretch(charges)
    waits = RULE_AFTER if rule is None else rule.after
    if (rule is None or rule.floor) and longest <= waits:
        advice = (
            f"It was idle for {in_words(longest)} at a time, at most: "
            f"an idle rule of {in_words(waits)} would have saved nothing."
        )
    elif rule is None:
        after = in_words(RULE_AFTER)
        advice = f'Give it an idle rule in fleet.toml: [deployments.{_as_key(name)}.idle] after = "{after}".'
    elif rule.floor:
        advice = f"Its idle rule keeps {rule.floor}: a floor of 0 would let it sleep."
    else:
        advice = f"Its idle rule waits {in_words(rule.after)}: a shorter one gives back sooner."
    return Waste(
        WasteKind.IDLE,
        name,
        usd,
        lasted,
        f"{in_words(lasted)} of server time without a request, {share:.0f} % of what {name} cost.",
        advice,
    )


def _longest_stretch(charges: Iterable[Charge]) -> timedelta:
    """Of one lease without a break. Bills are cut at midnight and where a price changed: that ends none."""
    longest = timedelta(0)
    began: dict[LeaseId, datetime] = {}
    ended: dict[LeaseId, datetime] = {}
    for charge in sorted(charges, key=lambda each: each.started_at):
        lease_id = charge.lease_id
        if ended.get(lease_id) != charge.started_at:
            began[lease_id] = charge.started_at
        ended[lease_id] = charge.ended_at
        longest = max(longest, charge.ended_at - began[lease_id])
    return longest


def _as_key(name: str) -> str:
    """As TOML wants it: a dot would begin another table."""
    return f'"{name}"' if "." in name else name


def _failed(server: str, charges: list[Charge], books: Books) -> Waste:
    leases = _leases(charges, books)
    faults = sum(str(fault.server_id) == server for fault in books.faults)
    times = len(leases)
    again = "It failed more than once: " if max(times, faults) > 1 else "Plans leave it out for some days; "
    return Waste(
        WasteKind.HOST_FAILED,
        server,
        _usd(charges),
        _lasted(charges),
        f"Server {server} failed {times} lease(s) before serving: {_commonest(leases)}.",
        f"{again}`clorefleet hosts block {server}` keeps it out for good.",
    )


def _unserved(name: DeploymentId, charges: list[Charge], books: Books) -> Waste:
    leases = _leases(charges, books)
    return Waste(
        WasteKind.NEVER_SERVED,
        name,
        _usd(charges),
        _lasted(charges),
        f"{len(leases)} start(s) of {name} ended before serving: {_commonest(leases)}.",
        f"`clorefleet logs {name}` tells what happened.",
    )


def _start_up(name: DeploymentId, charges: list[Charge]) -> Waste:
    starts = len({charge.lease_id for charge in charges})
    return Waste(
        WasteKind.START_UP,
        name,
        _usd(charges),
        _lasted(charges),
        f"{starts} start-up(s) of {name} took {in_words(_lasted(charges))} that was paid for.",
        "Fewer and longer runs pay a start-up less often; so does a longer `after` of its idle rule.",
    )


def _leases(charges: Iterable[Charge], books: Books) -> list[Lease]:
    named: dict[LeaseId, None] = dict.fromkeys(charge.lease_id for charge in charges)
    return [books.leases[lease_id] for lease_id in named if lease_id in books.leases]


def _commonest(leases: Iterable[Lease]) -> str:
    reasons = Counter(clean_line(lease.reason or "no reason recorded") for lease in leases)
    [(reason, _)] = reasons.most_common(1)
    return clean_line(reason, max_chars=_REASON_MAX_CHARS).rstrip(".")
