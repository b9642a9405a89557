"""What a fleet would have cost over a traffic trace: weeks of load, minute by minute, on the real decisions.

    trace    requests of a public trace: when, how many tokens in and out
    week     weeks of load composed from a trace by a stated day-and-week profile
    market   what a server costs over the weeks: seeded, or from snapshots
    queue    what replicas make of a minute's load: tokens served, requests late
    replay   the minutes in order, under one policy
    policy   always on, by the clock, by load, by load and forecast
    optimum  what perfect foresight would have paid, as an integer program

No network, no store, no GPUs: every figure that comes out of here is simulated, and says so. The fault
simulation beside it (`clorefleet.simulation`) is about safety; this one is about cost.
"""
