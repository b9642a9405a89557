"""The name by which an image tells that it has KTransformers' kernels, on a simulated node."""

__version__ = "0.7.2"
