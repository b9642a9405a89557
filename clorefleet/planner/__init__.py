"""Which setup runs a model, where, how fast, at what price; and why everything else does not.

Pure: offers, recipes and GPU facts in, ranked plans and counted refusals out. No network, no clock, no
database, no chance. `plan`, `deploy` and the daemon all call `plan_requirement`.
"""

from clorefleet.planner.rank import plan_requirement

__all__ = ["plan_requirement"]
