"""The kinds by which weights, engines and figures are told apart: words without the recipe around them.

Apart from `domain.recipe`, which has them as well, so that what only names a kind is quick to import.
"""

from __future__ import annotations

from enum import StrEnum


class Mark(StrEnum):
    """How a figure was had."""

    PUBLISHED = "published"
    COMPUTED = "computed"
    ASSUMED = "assumed"
    MEASURED = "measured"


class Precision(StrEnum):
    """The classes that users ask for. A checkpoint's exact format is its `format`."""

    BF16 = "bf16"
    FP8 = "fp8"
    Q8 = "q8"
    Q6 = "q6"
    Q5 = "q5"
    Q4 = "q4"
    Q3 = "q3"
    Q2 = "q2"
    Q1 = "q1"
    FP4 = "fp4"


class EngineName(StrEnum):
    SGLANG = "sglang"
    VLLM = "vllm"
    LLAMACPP = "llama.cpp"
    KTRANSFORMERS = "ktransformers"


class WeightsLayout(StrEnum):
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
