"""A whole fleet in one process on virtual time: seeds, faults, invariants, shrinking.

What is real here: `reconcile`, `Executor`, `Journal`, the budget guard, the rent protocol, leadership, and
on one seed in ten the SQLite store. What is simulated: the market, the nodes, the planner's choice, the
clock, the user, and everything that goes wrong (`faults`). The simulated edges import domain values and
nothing of the logic they test.

    python -m clorefleet.simulation --seeds 1000
"""
