"""The name that `python3 -m sglang.launch_server` looks for on a simulated node; the stand-in is beside it."""

__version__ = "0.5.23"
