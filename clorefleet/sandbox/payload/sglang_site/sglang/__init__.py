"""The name that `python3 -m sglang.launch_server` looks for on a simulated node."""

__version__ = "0.5.23"
