"""clorefleet: one command that puts a large language model on rented GPUs for the least money, safely.

The words, used with one meaning in code, commands, logs, documents and database columns:

=============  ==================================================================================
Offer          what the marketplace shows: a server, its hardware, its prices, its owner's record
Recipe         one model as data: dimensions, checkpoints, engines, flags, sampling defaults
Checkpoint     one published set of weights of a model: precision, repository, files, bytes
Setup          checkpoint + engine + parallelism + offload split + context + concurrency
Fit            verdict on a setup on hardware: memory by part, margin, or the shortfall and its cure
Plan           offer + setup + predicted speed + all-in price per day + reasons
Deployment     what the user wants kept: model, constraints, budget, replicas
Replica        one serving copy of a deployment, on one lease; has a phase
Intent         what was durably written before an effect that costs, stops or exposes
Order          what the market bills
Lease          our belief about one rented server: intent, ordered, active, ending, ended
Node           the server as seen over SSH: host key, facts measured, jobs
Job            a detached, idempotent piece of work on a node
Orphan         an order that bills and that no lease or declared foreign order explains
Ledger         seconds x rate for every lease, in the billed currency and in USD
Books          all that the store keeps about money and time, read once, for reports
Charge         part of one lease's bill: of one order, one stage, one local day
Stage          what paid time went to: bootstrap, serving, idle, draining
Sweep          compare both sides, adopt or cancel
Sandbox        the simulated market, hub and nodes on loopback
=============  ==================================================================================

Where things live (imports point inward, and a test holds it):

    cli, daemon -> fleet (effects), report -> market, node, engine, store -> planner, fleet (pure) -> domain

`docs/design.md` has the reasons.
"""

__version__ = "0.1.0"
