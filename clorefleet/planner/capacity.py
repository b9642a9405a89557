"""How much load replicas carry while requests do not wait too long.

Replicas behind one gateway are taken as one queue with as many places as their engines serve at once
(an M/M/c queue: arrivals at random, least-loaded routing close to one common queue [assumed]). The share of
requests that wait longer than t is then Erlang's C formula times exp(-(places - load) t / service time):
A. K. Erlang, 1917; Gross et al., "Fundamentals of Queueing Theory". Few large places queue more than many
small ones at the same load, which is why no fixed "80 %" is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LOAD_STEPS = 14
"""Bisection steps: the load is then exact to a ten thousandth of the places."""
_NORMAL = ((0.0, 2 / 3), (3**0.5, 1 / 6), (-(3**0.5), 1 / 6))
"""Points and weights of a normal distribution (Gauss and Hermite, three points)."""
_SMALL = 1e-9


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """What one replica does at full batch."""

    tokens_per_s: float
    """Weighted tokens of all its places together, measured where it was, else predicted."""
    places: int
    """Requests served at once."""
    is_measured: bool = False

    def __post_init__(self) -> None:
        if self.tokens_per_s <= 0 or self.places < 1:
            raise ValueError("a replica has a speed and at least one place")


def erlang_c(places: int, load: float) -> float:
    """The share of requests that find all `places` taken, at `load` places' worth of work (Erlang)."""
    if load <= 0:
        return 0.0
    if load >= places:
        return 1.0
    # Erlang B's inverse is the sum of k (k-1) ... (k-j+1) / load^j over j; C follows from B. All terms are
    # positive, and those after the largest soon vanish.
    inverse_b = term = 1.0
    for k in range(places, 0, -1):
        term *= k / load
        inverse_b += term
        if inverse_b * _SMALL > 1:
            return 0.0
        if k < load and term < inverse_b * _SMALL:
            break
    b = 1.0 / inverse_b
    return b / (1 - load / places * (1 - b))


def late_share(places: int, load: float, *, service_s: float, wait_s: float) -> float:
    """The share of requests that wait longer than `wait_s` for a place; 1 when they cannot keep up."""
    if load >= places:
        return 1.0
    queued = erlang_c(places, load)
    if queued == 0.0:
        return 0.0
    return queued * math.exp(-(places - load) * wait_s / service_s)


def load_carried(
    places: int, *, service_s: float, wait_s: float, late_max: float, variation: float = 0.0
) -> float:
    """The most load (Erlang) at which no more than `late_max` of the requests wait longer than `wait_s`.

    `variation` is the standard deviation of the load about its mean, as a share of it: requests come in
    bursts, and those that come in a burst are many.
    """

    def late(load: float) -> float:
        if variation <= 0:
            return late_share(places, load, service_s=service_s, wait_s=wait_s)
        total = 0.0
        for point, weight in _NORMAL:
            factor = max(0.0, 1 + point * variation)
            total += weight * factor * late_share(places, load * factor, service_s=service_s, wait_s=wait_s)
        return total

    low, high = 0.0, float(places)
    for _ in range(LOAD_STEPS):
        middle = (low + high) / 2
        if late(middle) <= late_max:
            low = middle
        else:
            high = middle
    return low


def demand_carried(
    replicas: int,
    capacity: ReplicaCapacity,
    *,
    tokens_per_request: float,
    wait_s: float,
    late_max: float,
    variation: float = 0.0,
) -> float:
    """Weighted tokens/s that `replicas` equal ones serve within the SLO."""
    if replicas <= 0:
        return 0.0
    per_place = capacity.tokens_per_s / capacity.places
    service_s = max(1e-6, tokens_per_request / per_place)
    places = replicas * capacity.places
    carried = load_carried(places, service_s=service_s, wait_s=wait_s, late_max=late_max, variation=variation)
    return carried * per_place
