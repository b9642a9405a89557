"""Which correction comes next, and what a setup is after those that were made. Each is made at most once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import Engine

CHUNK_TOKENS = 2048
"""Prefill at once after a shortage: activations of a long prompt are what grows with it."""
_OPPOSITES = {
    Correction.LOWER_MEMORY_FRACTION: Correction.HIGHER_MEMORY_FRACTION,
    Correction.HIGHER_MEMORY_FRACTION: Correction.LOWER_MEMORY_FRACTION,
}


def next_correction(
    engine: Engine, setup: Setup, cause: Cause, made: tuple[Correction, ...]
) -> Correction | None:
    """The first that is left for the cause and changes something, or None. `setup` is as planned.

    Weights that an engine finds damaged are no engine's own matter: no setting cures them.
    """
    if cause is Cause.BAD_CHECKPOINT:
        return None if Correction.FETCH_AGAIN in made else Correction.FETCH_AGAIN
    now = corrected(engine, setup, made)
    for correction in engine.corrections(cause):
        # One up and one down would end where the first launch failed.
        if correction in made or _OPPOSITES.get(correction) in made:
            continue
        if correction is Correction.OTHER_PORT or engine.apply(now, correction) is not None:
            return correction
    return None


def corrected(engine: Engine, setup: Setup, made: Iterable[Correction]) -> Setup:
    """The planned setup with the corrections made; one that no longer changes anything is passed over."""
    for correction in made:
        setup = engine.apply(setup, correction) or setup
    return setup


def with_memory_fraction(
    setup: Setup, step: float, *, default: float, least: float, most: float
) -> Setup | None:
    """The share of GPU memory moved by `step`, or None where it cannot move any further."""
    before = default if setup.memory_fraction is None else setup.memory_fraction
    after = round(min(most, max(least, before + step)), 3)
    return None if after == before else replace(setup, memory_fraction=after)


def with_shorter_context(setup: Setup) -> Setup | None:
    """Half the context, not below what was asked for, and prefill in small chunks."""
    floor = setup.context_floor_tokens or setup.context_tokens
    tokens = max(floor, setup.context_tokens // 2)
    chunk = min(CHUNK_TOKENS, setup.prefill_chunk_tokens or CHUNK_TOKENS)
    if tokens == setup.context_tokens and chunk == setup.prefill_chunk_tokens:
        return None
    return replace(setup, context_tokens=tokens, prefill_chunk_tokens=chunk)


def without_peer_to_peer(setup: Setup) -> Setup | None:
    return replace(setup, has_peer_to_peer=False) if setup.has_peer_to_peer else None
