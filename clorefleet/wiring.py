"""Which market, which nodes, which planner, which gateway: the one place that constructs edges.

Everything heavy is imported inside, so that a command pays only for the edges it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.domain.offer import MarketView
    from clorefleet.domain.plan import PlanReport, Requirement
    from clorefleet.fleet.edges import Planner
    from clorefleet.market.rent import RentProtocol


def make_market(connection: Connection) -> RentProtocol:
    """The profile's market. All processes of a profile share its request limit through a file."""
    from clorefleet.market.client import MarketClient
    from clorefleet.market.limiter import FileSlot, RequestLimiter
    from clorefleet.market.rent import RentProtocol

    slot = FileSlot(connection.profile.state_dir / "requests.slot")
    client = MarketClient(
        connection.market_url,
        connection.api_key if connection.api_key.reveal() else None,
        clock=connection.clock,
        limiter=RequestLimiter(connection.clock, slot=slot),
    )
    return RentProtocol(client, clock=connection.clock)


def make_planner(connection: Connection) -> Planner:
    """The planner with this installation's recipes and GPU facts."""
    from clorefleet.config.recipes import find_recipe, load_recipes
    from clorefleet.planner import plan_requirement
    from clorefleet.planner.gpus import load_gpus

    recipes, gpus = load_recipes(), load_gpus()

    def plan(requirement: Requirement, market: MarketView) -> PlanReport:
        return plan_requirement(requirement, market, find_recipe(requirement.model, recipes), gpus)

    return plan
