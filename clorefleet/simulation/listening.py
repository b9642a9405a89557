"""The log, heard by the judge: what is logged must be as harmless as what is stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from clorefleet.simulation.judge import Judge


class _Listener(logging.Handler):
    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    def emit(self, record: logging.LogRecord) -> None:
        self._judge.hear(record.getMessage())


_NOT_ASKED = ("logThreads", "logProcesses", "logMultiprocessing")
"""What `logging` finds out for each record unless it is told not to, as its documentation advises; nobody
reads it here."""


@contextmanager
def heard(judge: Judge) -> Iterator[None]:
    logger = logging.getLogger("clorefleet")
    listener = _Listener(judge)
    before = (logger.propagate, logger.level)
    asked = {name: getattr(logging, name) for name in _NOT_ASKED}
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    vars(logging).update(dict.fromkeys(_NOT_ASKED, False))
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate, level = before
        logger.setLevel(level)
        vars(logging).update(asked)
