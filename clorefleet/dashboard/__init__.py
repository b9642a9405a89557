"""The fleet in a browser on this machine: one page per question, live, and two wishes (stop, scale).

It reads the store and the daemon's files, and never talks to the market or to a rented server. What it writes
are wishes, as the commands write them; the daemon's tick decides and acts. It may die at any moment: nothing
depends on it, and the sessions die with it.

Everything that comes from outside the process (names of hosts and GPUs, lines of logs, reasons) is stripped
of control characters, bounded and escaped by the templates' environment, whatever a template forgets.
docs/dashboard.md has the threat model.
"""
