"""One OpenAI-compatible address on this machine, in front of all replicas.

token     the key that every request must show; only its digest is kept in memory
routing   which replica takes a request: pure
app       the routes: checks, passes through, counts
service   runs the app in a thread of the daemon
"""
