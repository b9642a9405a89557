"""The programs that serve a model: how each is started, when it is ready, what its numbers and its death mean.

One module per engine, all with the functions of `base.Engine`. Nothing here talks to a node: commands
and texts in, values out.
"""

from __future__ import annotations

from clorefleet.domain.recipe import EngineName
from clorefleet.engine.base import Engine


def engine_of(name: EngineName) -> Engine:
    """The module of an engine; imported only when it is used."""
    match name:
        case EngineName.LLAMACPP:
            from clorefleet.engine.llamacpp import LlamaCpp

            return LlamaCpp()
        case EngineName.SGLANG:
            from clorefleet.engine.sglang import SgLang

            return SgLang()
        case EngineName.VLLM:
            from clorefleet.engine.vllm import Vllm

            return Vllm()
        case EngineName.KTRANSFORMERS:
            from clorefleet.engine.ktransformers import KTransformers

            return KTransformers()
