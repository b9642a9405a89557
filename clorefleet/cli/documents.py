"""What `--json` prints, command by command: the shapes that `tools/reference.py` writes to docs/json/.

Money is `Decimal` here and text in JSON, so that no digit is lost; instants are ISO 8601 with their offset,
durations ISO 8601. `None` stands for what is not known or not there. A field may be added; one that is here
keeps its name and meaning. `tests/cli/test_json.py` holds real output against these shapes.

Imported by the generator and by tests alone: commands build plain dictionaries.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from typing_extensions import TypedDict

from clorefleet.domain.dimension import Dimension
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.money import Currency
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.offer import Offer
from clorefleet.domain.recipe import Recipe
from clorefleet.planner.prices import Verdict as PriceVerdict
from clorefleet.report.charges import Stage
from clorefleet.report.status import DeploymentStatus, FleetStatus
from clorefleet.report.waste import WasteKind


class ErrorBody(TypedDict):
    kind: str
    """The class of the error; its exit code says what to do about it."""
    what: str
    money: str
    remedy: str
    fault: Literal["user", "clorefleet", "market", "host"]
    may_retry: bool
    exit_code: int


class Error(TypedDict):
    """Any command that fails, in place of its own document."""

    error: ErrorBody


class Models(TypedDict):
    models: list[Recipe]


class ModelDraft(TypedDict):
    name: str
    file: str
    findings: list[str]


class CalibrationRun(TypedDict):
    name: str
    measured: float
    predicted: float
    error: float
    """As a share of what was measured; negative where the prediction was too low."""
    fits: list[str]
    source: str


class Calibration(TypedDict):
    median_error: float
    runs: list[CalibrationRun]


class RecipeFinding(TypedDict):
    file: str
    level: Literal["error", "warning"]
    where: str
    text: str


class RecipeCheck(TypedDict):
    findings: list[RecipeFinding]
    errors: int
    warnings: int


class PricedOffer(TypedDict):
    usd_per_day_effective: Decimal | None
    """The cheapest way to pay, without the renter's fee."""


class Offers(TypedDict):
    offers: list[Offer]
    """Each with `usd_per_day_effective` beside its own fields."""
    matching: int
    seen: int
    read_at: datetime


class PriceRow(TypedDict):
    """USD per GPU and day as offered, without the renter's fee."""

    gpu: str
    at: datetime
    lasts_s: int
    """0 is one reading; an hour or a day is many."""
    readings: int
    offers: int
    least_usd_per_day: Decimal
    p10_usd_per_day: Decimal
    p25_usd_per_day: Decimal
    median_usd_per_day: Decimal
    p75_usd_per_day: Decimal
    p90_usd_per_day: Decimal


class PriceNow(PriceRow):
    share_cheaper_before: float | None
    verdict: PriceVerdict
    readings_before: int
    span_s: int
    p10_least_before: Decimal | None
    p10_median_before: Decimal | None
    p10_most_before: Decimal | None


class Prices(TypedDict):
    at: datetime
    days: int
    kind: Literal["spot", "on-demand"]
    prices: list[PriceNow]
    history: list[PriceRow]
    """Where one GPU was asked for."""


class Deployed(TypedDict):
    gateway_url: str
    token_file: str


class Detached(TypedDict):
    deployment_id: DeploymentId
    is_watched: Literal[False]


class Written(TypedDict):
    file: str


class Difference(TypedDict):
    key: str
    before: str
    after: str
    lowers_spending: bool


class ChangeOfFleet(TypedDict):
    kind: Literal["create", "update", "stop", "ceiling", "conflict"]
    deployment_id: DeploymentId | None
    lowers_spending: bool
    differences: list[Difference]
    best_server_id: ServerId | None
    usd_per_day_estimated: Decimal | None
    week_usd_least_estimated: Decimal | None
    week_usd_most_estimated: Decimal | None
    budget: str | None
    no_plan: str
    burning_usd_per_day: Decimal


class Diff(TypedDict):
    file: str
    changes: list[ChangeOfFleet]
    fleet_budget: str | None


class Applied(Diff):
    applied: bool


class ScheduleTransition(TypedDict):
    at: datetime
    until: datetime
    replicas: int
    reason: str
    usd_estimated: Decimal | None


class Scheduled(TypedDict):
    deployment_id: DeploymentId
    lead_s: int
    lead_source: str
    usd_per_day_each_estimated: Decimal | None
    transitions: list[ScheduleTransition]


class Move(TypedDict):
    deployment: DeploymentId
    lease: LeaseId | None
    to_server: ServerId | None
    pays: bool
    reason: str
    saving_usd_per_day: Decimal
    cost_usd: Decimal
    expected_life_s: int
    is_automatic: bool


class SimulatedReplica(TypedDict):
    tokens_per_s: float
    places: int
    ready_after_s: float
    is_predicted: bool


class Slo(TypedDict):
    wait_s: float
    share: float


class SimulatedPolicy(TypedDict):
    policy: str
    usd: Decimal
    requests: int
    attained: float
    turned_away: int
    starts: int
    replicas_mean: float
    replicas_max: int


class Optimum(TypedDict):
    usd: Decimal | None
    bound_usd: Decimal
    status: str


class SimulatedDeployment(TypedDict):
    deployment: str
    model: str
    server: str
    load: str
    prices: str
    replica: SimulatedReplica
    slo: Slo
    policies: list[SimulatedPolicy]
    optimum: Optimum | None


class Simulation(TypedDict):
    simulated: Literal[True]
    deployments: list[SimulatedDeployment]


class RunningDaemon(TypedDict):
    pid: int
    gateway_url: str


class StatusMore(TypedDict):
    daemon: RunningDaemon | None
    profile: str
    warnings: list[str]


class Logs(TypedDict):
    events: list[Event]


class EngineLog(TypedDict):
    lease_id: LeaseId
    lines: list[str]


class EngineLine(TypedDict):
    lease_id: LeaseId
    line: str


class Diagnosis(TypedDict):
    engine: str
    cause: str
    text: str
    remedy: str
    line: str
    corrections: list[str]


class Scaled(TypedDict):
    deployment_id: DeploymentId
    replicas_before: int
    replicas: int
    replicas_max: int
    usd_per_day_more_estimated: Decimal | None
    budget: str | None
    means: list[str]


class Stopped(TypedDict):
    deployment_id: DeploymentId
    state: Literal["stopped"]
    spent_usd: Decimal


class StoppedAll(TypedDict):
    ended: list[OrderId]
    left: list[OrderId]
    unreadable: int
    """Records of the market's list that could not be read: any may be an order that bills."""


class CostPart(TypedDict):
    usd: Decimal
    lasted_s: int


class CostGroup(TypedDict):
    usd: Decimal
    billed: dict[Currency, Decimal]
    planned_usd: Decimal
    """Price and fee when the servers were rented, for the same time."""
    lasted_s: int
    """Server time: two servers for an hour are two hours."""
    phases: dict[Stage, CostPart]
    requests: int
    failed_requests: int
    uncounted_requests: int
    """Answered without token counts."""
    prompt_tokens: int
    generated_tokens: int
    usd_per_million_tokens: Decimal | None


class CostRow(CostGroup):
    key: dict[Dimension, str]


class CostWaste(TypedDict):
    kind: WasteKind
    subject: str
    usd: Decimal
    lasted_s: int
    what: str
    advice: str


class CostForecast(TypedDict):
    deployment: DeploymentId | None
    """None is the fleet."""
    month: str
    ends_at: datetime
    spent_usd: Decimal
    running_usd_per_day: Decimal
    recent_usd_per_day: Decimal | None
    at_present_usd: Decimal
    at_recent_usd: Decimal | None
    ceiling_usd: Decimal | None


class CostReplica(TypedDict):
    lease_id: LeaseId
    deployment: DeploymentId
    server_id: ServerId
    gpus: str
    lasted_s: int
    planned_usd: Decimal
    actual_usd: Decimal
    planned_usd_per_day: Decimal
    actual_usd_per_day: Decimal | None
    all_in_usd_per_day: Decimal
    predicted_tokens_per_s: float
    measured_tokens_per_s: float | None


class CostSegment(TypedDict):
    order_id: OrderId
    lease_id: LeaseId
    deployment_id: DeploymentId
    server_id: ServerId | None
    gpus: str
    kind: Literal["spot", "on-demand"]
    price_per_day: Decimal
    currency: Currency
    fee_percent: Decimal
    started_at: datetime
    ended_at: datetime | None
    state: Literal["settled", "ended", "running"]
    cost: Decimal
    estimate: Decimal
    drift: Decimal | None
    market_spend: Decimal | None
    usd_per_unit: Decimal
    rate_source: str
    cost_usd: Decimal
    reason_ended: str


class CostWallet(TypedDict):
    currency: Currency
    read_at: datetime
    balance: Decimal
    balance_usd: Decimal | None
    usd_per_unit: Decimal | None
    rate_source: str
    burn_per_day: Decimal
    runway_days: Decimal | None
    since: datetime
    drift: Decimal


class Cost(TypedDict):
    schema: Literal["clorefleet.cost/1"]
    at: datetime
    time_zone: str
    since: datetime | None
    until: datetime | None
    deployment: DeploymentId | None
    by: list[Dimension]
    total_usd: Decimal
    unsettled_usd: Decimal
    total: CostGroup
    rows: list[CostRow]
    """Their `usd` add up to `total_usd` exactly."""
    waste_usd: Decimal
    waste: list[CostWaste]
    forecasts: list[CostForecast]
    replicas: list[CostReplica]
    segments: list[CostSegment]
    settled_drift_usd: Decimal | None
    wallets: list[CostWallet]


class HostFaultDocument(TypedDict):
    at: datetime
    reason: str
    cost_usd: Decimal


class HostVerdictDocument(TypedDict):
    at: datetime
    verdict: str
    reason: str


class HostLease(TypedDict):
    lease_id: LeaseId
    deployment_id: DeploymentId
    state: str
    phase: str
    created_at: datetime
    ended_at: datetime | None
    measured_tokens_per_s: float | None
    reason: str


class HostLeaseMeasured(HostLease):
    facts: NodeFacts | None
    discrepancies: list[Discrepancy]


class HostBase(TypedDict):
    server_id: ServerId
    gpus: str
    is_left_out: bool
    state: str
    lost_usd: Decimal
    faults: list[HostFaultDocument]
    verdicts: list[HostVerdictDocument]


class Host(HostBase):
    leases: list[HostLease]


class HostHistory(HostBase):
    leases: list[HostLeaseMeasured]


class Verdict(TypedDict):
    server_id: ServerId
    verdict: Literal["blocked", "unblocked"]
    running: list[DeploymentId]
    """What runs on it and goes on."""


class WalletLine(TypedDict):
    currency: str
    balance: Decimal | None
    orders_per_day: Decimal
    """Without the renter's fee."""
    runway_days: Decimal | None
    """At these orders and the renter's fee."""


class Wallet(TypedDict):
    wallets: list[WalletLine]
    live_orders: int


class Budget(TypedDict):
    per_day_usd: Decimal | None
    total_usd: Decimal | None
    deployment_totals_usd: dict[str, Decimal]
    committed_usd_per_day: Decimal
    spent_today_usd: Decimal
    spent_total_usd: Decimal | None
    is_stopped: bool
    stopped_because: str


class SweptOrder(TypedDict):
    order_id: OrderId
    server_id: ServerId
    price_per_day: Decimal
    currency: str
    spend: Decimal
    image: str
    created_at: datetime | None
    standing: str
    why: str
    is_ended: bool


class Sweep(TypedDict):
    orders: list[SweptOrder]
    orphans: list[OrderId]
    unreadable: int
    """Records of the market's list that could not be read: any may be an order that bills."""


class Adopted(TypedDict):
    order_id: OrderId
    lease_id: LeaseId
    deployment_id: DeploymentId


class DbStatus(TypedDict):
    place: str
    revision: str | None
    wanted: str
    is_current: bool


DbUpgrade = TypedDict("DbUpgrade", {"from": str | None, "to": str | None, "is_changed": bool})


class DbBackup(TypedDict):
    file: str
    bytes: int


class DaemonStarted(TypedDict):
    pid: int
    gateway_url: str
    was_started: bool


class SandboxStopped(TypedDict):
    was_running: bool


class DaemonStopped(TypedDict):
    was_running: bool
    orders: int | None
    usd_per_hour: Decimal | None


class DaemonStatus(TypedDict):
    running: bool
    pid: int | None
    gateway_url: str | None
    metrics_url: str | None
    ticks: int
    last_tick_at: datetime | None
    orders_read_at: datetime | None
    trouble: str


class Unit(TypedDict):
    unit: str
    file: str
    is_installed: bool


class DashboardLink(TypedDict):
    link: str
    """Works once, within ten minutes."""
    is_new: bool


class SandboxServer(TypedDict):
    market_url: str
    hub_url: str
    seed: int
    time_factor: float
    pid: int
    simulated: Literal[True]


class SandboxStatusRunning(TypedDict, total=False):
    pid: int
    market_url: str
    hub_url: str
    seed: int
    time_factor: float
    state_dir: str
    now_unix_s: float
    servers: int
    orders_live: int
    orders_ended: int
    wallets: dict[str, str]


class SandboxStatus(SandboxStatusRunning):
    running: bool


class SandboxReset(TypedDict):
    is_reset: bool


class Finding(TypedDict):
    name: str
    is_good: bool
    text: str
    remedy: str


class Doctor(TypedDict):
    good: bool
    findings: list[Finding]


DOCUMENTS: dict[str, tuple[object, ...]] = {
    "error": (Error,),
    "models list": (Models,),
    "models show": (Recipe,),
    "models add": (ModelDraft,),
    "models calibration": (Calibration,),
    "recipes check": (RecipeCheck,),
    "offers": (Offers,),
    "prices": (Prices,),
    "deploy": (DeploymentStatus, Deployed),
    "deploy --detach": (Detached,),
    "init": (Written,),
    "diff": (Diff,),
    "apply": (Applied,),
    "schedule show": (list[Scheduled],),
    "optimize": (list[Move],),
    "simulate": (Simulation,),
    "status": (FleetStatus, StatusMore),
    "logs": (Logs,),
    "logs --follow": (Event,),
    "logs --engine": (EngineLog,),
    "logs --engine --follow": (EngineLine,),
    "diagnose": (Diagnosis,),
    "scale": (Scaled,),
    "stop": (Stopped,),
    "stop --all": (StoppedAll,),
    "cost": (Cost,),
    "report": (Cost,),
    "hosts list": (list[Host],),
    "hosts history": (HostHistory,),
    "hosts block": (Verdict,),
    "hosts unblock": (Verdict,),
    "wallet": (Wallet,),
    "budget": (Budget,),
    "sweep": (Sweep,),
    "adopt": (Adopted,),
    "db status": (DbStatus,),
    "db upgrade": (DbUpgrade,),
    "db backup": (DbBackup,),
    "daemon start": (DaemonStarted,),
    "daemon stop": (DaemonStopped,),
    "daemon status": (DaemonStatus,),
    "daemon install": (Unit,),
    "daemon uninstall": (Unit,),
    "dashboard": (DashboardLink,),
    "sandbox serve": (SandboxServer,),
    "sandbox status": (SandboxStatus,),
    "sandbox stop": (SandboxStopped,),
    "sandbox reset": (SandboxReset,),
    "doctor": (Doctor,),
}
"""By command. Where there are two shapes, the document has the fields of both."""

ELSEWHERE = {"plan": "docs/plan.schema.json"}
"""Commands whose schema is written by hand."""
NO_DOCUMENT = {"ssh": "its output is the server's own"}
