"""Keep what the user wants, and nothing more: observe, decide, act.

Pure (values in, values out): `snapshot`, `action`, `reconcile`, `budget`, `limits`.
Effects: `observe` (reads market and nodes), `journal` and `execute` (write, act, record), `loop` (a tick).
"""
