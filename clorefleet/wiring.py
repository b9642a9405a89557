"""Which market, which nodes, which planner, which gateway: the one place that constructs edges.

Everything heavy is imported inside, so that a command pays only for the edges it uses.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clorefleet.config.profile import Connection
    from clorefleet.domain.lease import Lease
    from clorefleet.domain.node import Credentials
    from clorefleet.domain.offer import MarketView
    from clorefleet.domain.plan import PlanReport, Requirement
    from clorefleet.domain.recipe import Recipe
    from clorefleet.domain.secret import Secret
    from clorefleet.fleet.edges import Market, Planner
    from clorefleet.gateway.service import GatewayService
    from clorefleet.market.rent import RentProtocol
    from clorefleet.node.operator import NodeOperator
    from clorefleet.node.session import NodeSession
    from clorefleet.planner.calibration import Calibration
    from clorefleet.planner.gpus import GpuTable

GATEWAY_PORT = 8410
SANDBOX_GATEWAY_PORT = 8411
"""Preferred; any free port is taken where they are not."""


def make_market(connection: Connection) -> RentProtocol:
    """The profile's market. All processes of a profile share its request limit through a file.

    Raises:
        ConfigError: its address or the key cannot be used; told by the name under which it was set.
    """
    from clorefleet.domain.errors import ConfigError
    from clorefleet.market.client import MarketClient
    from clorefleet.market.limiter import LOWERING_INTERVAL_S, FileSlot, RequestLimiter
    from clorefleet.market.rent import RentProtocol

    slot = FileSlot(connection.profile.state_dir / "requests.slot")
    try:
        client = MarketClient(
            connection.market_url,
            connection.api_key if connection.api_key.reveal() else None,
            clock=connection.clock,
            limiter=RequestLimiter(
                connection.clock, slot=slot, lowering_s=LOWERING_INTERVAL_S / connection.time_factor
            ),
        )
    except ConfigError as error:
        if os.environ.get("CLORE_API_URL"):
            error.remedy = error.remedy.replace("api_url", "CLORE_API_URL, in the environment,")
        raise
    return RentProtocol(client, clock=connection.clock)


def fetch_view_with_wallets(market: Market) -> MarketView:
    """The market, and what the wallets hold: plans that they cannot pay come last.

    Raises:
        MarketError: either cannot be read.
    """
    return replace(market.fetch_view(), wallets=market.fetch_wallets())


def make_planner(connection: Connection) -> Planner:
    """The planner with this installation's recipes and GPU facts."""
    from clorefleet.config.recipes import Recipes, find_recipe
    from clorefleet.planner import plan_requirement
    from clorefleet.planner.gpus import load_gpus
    from clorefleet.planner.shapes import ShapeMemo

    recipes, gpus, memo = Recipes(), load_gpus(), ShapeMemo()

    def plan(requirement: Requirement, market: MarketView) -> PlanReport:
        recipe = find_recipe(requirement.model, recipes)
        others = tuple(recipes.values())
        return plan_requirement(
            requirement,
            market,
            recipe,
            gpus,
            all_recipes=others,
            memo=memo,
            calibration=read_calibration(connection, recipes, gpus),
        )

    return plan


def read_calibration(connection: Connection, recipes: Mapping[str, Recipe], gpus: GpuTable) -> Calibration:
    """What this profile's own replicas measured, beside what would be predicted for them today.

    A simulated engine counts only in the sandbox, whose machines are simulated alike. A real one counts only
    outside: in the sandbox it runs on this machine's processor, whatever GPU its server is said to have, and
    plans would change by how busy a laptop is.
    """
    from clorefleet.planner.calibration import Calibration, Measurement, slowest
    from clorefleet.planner.hardware import hardware_of_offer
    from clorefleet.planner.speed import predict
    from clorefleet.store.measured import measured_leases

    found = []
    for lease in measured_leases(connection.store_url):
        setup, recipe = lease.plan.setup, recipes.get(lease.plan.setup.model)
        hardware = hardware_of_offer(lease.plan.offer, gpus)
        is_known = recipe is not None and any(each.key == setup.checkpoint for each in recipe.checkpoints)
        if recipe is None or not is_known or hardware is None or lease.measured_tokens_per_s is None:
            continue
        if lease.engine_is_simulated != connection.profile.is_sandbox:
            continue
        found.append(
            Measurement(
                model=setup.model,
                gpu_id=slowest(hardware.gpus).gpu_id,
                engine=setup.engine,
                precision=setup.precision,
                reads_ram=setup.reads_ram,
                predicted_tokens_per_s=predict(setup, recipe, hardware).decode_tokens_per_s,
                measured_tokens_per_s=lease.measured_tokens_per_s,
                is_simulated=connection.profile.is_sandbox,
            )
        )
    return Calibration.of(found)


def make_nodes(connection: Connection) -> NodeOperator:
    from clorefleet.config.recipes import Recipes
    from clorefleet.node.operator import NodeOperator
    from clorefleet.node.verify import KNOWN_ANSWERS
    from clorefleet.node.weights import mirror_of

    known_answers = KNOWN_ANSWERS
    if connection.profile.is_sandbox:
        from clorefleet.sandbox.assets import has_real_model

        known_answers = KNOWN_ANSWERS if has_real_model() else ()
    return NodeOperator(
        connection.profile.state_dir,
        hub_url=connection.hub_url,
        # The sandbox's nodes have a hub of their own, each with its own line.
        mirror="" if connection.profile.is_sandbox else mirror_of(connection.hub_url),
        recipes=Recipes(),
        allow_loopback=connection.allows_loopback_nodes,
        known_answers=known_answers,
        hub_access=connection.hub_access,
        relay_mbit_s=connection.relay_mbit_s,
    )


def gateway_token(connection: Connection) -> Secret:
    """What the gateway's clients show; here so that it can be kept out of what is told."""
    from clorefleet.gateway.token import load_or_create

    return load_or_create(connection.profile.state_dir)


def make_gateway(connection: Connection) -> GatewayService:
    from clorefleet.gateway.service import GatewayService
    from clorefleet.gateway.token import TokenCheck, load_or_create

    profile = connection.profile
    return GatewayService(
        TokenCheck.of(load_or_create(profile.state_dir)),
        preferred_port=SANDBOX_GATEWAY_PORT if profile.is_sandbox else GATEWAY_PORT,
        clock_factor=connection.time_factor,
    )


def startup_command(credentials: Credentials) -> str:
    """The order's start-up script."""
    from clorefleet.node.keys import startup_command as command

    return command(credentials)


def connect_node(connection: Connection, lease: Lease) -> NodeSession:
    """A session of the caller's own on a lease's pinned host key.

    Raises:
        NodeError: the key is gone, or the server cannot be reached.
    """
    from clorefleet.domain.errors import NodeError
    from clorefleet.node.keys import load_keys
    from clorefleet.node.session import NodeSession

    keys = load_keys(connection.profile.state_dir, lease.lease_id)
    if keys is None or lease.address is None or not lease.host_key:
        raise NodeError("This machine has no key for the server.", remedy="Was it rented from another?")
    return NodeSession.connect(
        lease.address,
        keys.private_key_file,
        pinned_host_key=lease.host_key,
        allow_loopback=connection.allows_loopback_nodes,
    )
