"""Every bound of the gateway, with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request and all requests together may take.

    Attributes:
        requests_max: at once. Their bodies, answers' ends and sockets are what the gateway holds.
        body_max_bytes, bodies_max_bytes: of one request, and of all that are held at once.
        body_s: for a client to send its whole body.
        connect_s: to a replica's socket, or for a free connection to it.
        first_byte_s: from sending to the first byte of the answer's body. A long prompt on a slow
            replica is silent for minutes; unstreamed answers are silent until they are complete.
        idle_s: between two pieces of an answer. A half-open tunnel is silent for ever.
        held_max_bytes: of an answer that is not streamed, before it is passed on. Up to here another replica
            can still answer when this one breaks off.
        answer_max_bytes, answer_s: a host can write without end, or for ever.
        requests_per_s, burst: taken on average, and at once before that counts. A loop in somebody's
            script must not keep every GPU busy.
    """

    requests_max: int = 256
    body_max_bytes: int = 16 << 20
    bodies_max_bytes: int = 256 << 20
    body_s: float = 60.0
    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    held_max_bytes: int = 1 << 20
    answer_max_bytes: int = 256 << 20
    answer_s: float = 6 * 3600.0
    requests_per_s: float = 100.0
    burst: int = 500


DEFAULT_LIMITS = Limits()
