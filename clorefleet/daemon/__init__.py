"""The guard of the money: a process that ticks the fleet and serves the gateway, one per profile.

`process` starts, finds and stops it and imports nothing heavy; `service` is what runs inside.
"""
