"""Telling the user without being asked: what is worth it, to whom, and once.

`fleet/alerts.py` makes alerts from what happened; `notifier` keeps them in the store and sends them;
`channels` are the ways out. It runs beside the tick, and no transaction is open while something is sent.
"""
