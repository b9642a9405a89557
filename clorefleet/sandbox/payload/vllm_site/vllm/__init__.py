"""The name that `python3 -m vllm...` looks for on a simulated node."""

__version__ = "0.33.0"
