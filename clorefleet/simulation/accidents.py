"""What goes wrong in the world at an instant: orders that end, coins that jump, stores that are lost."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from clorefleet.domain.money import Currency
from clorefleet.simulation.faults import Incident
from clorefleet.simulation.nodes import KeyFolder
from clorefleet.simulation.process import Home
from clorefleet.simulation.scenario import DAY_S, RATES, Wish, WishKind

if TYPE_CHECKING:
    from clorefleet.simulation.life import World

_TIDY_AFTER_S = 1800.0
_BACKUP_EVERY_S = DAY_S


class Accidents:
    def __init__(self, world: World) -> None:
        self._world = world

    def strike(self, incident: Incident) -> None:
        """What an incident does to the world by itself."""
        world = self._world
        home, now_s = world.homes[0], world.now_s()
        mine = [order for order in world.market.live() if order.asked_by != "user"]
        match incident.fault:
            case "A9v" if mine:
                order = mine[int(incident.arg * len(mine))]
                order.hidden_until_s = now_s + incident.lasts_s
                world.switches.note("A9v")
            case "A17" if mine:
                world.switches.note("A17")
                world.market.end(mine[int(incident.arg * len(mine))], now_s, "the host ended it")
            case "B1":
                if incident.arg < 0.5:
                    for order in mine:
                        world.switches.note("B1")
                        world.market.end(order, now_s, "the wallet is empty")
            case "B3":
                currency = (Currency.CLORE, Currency.BITCOIN)[int(incident.arg * 2)]
                factor = Decimal(10) if incident.arg * 4 % 1 < 0.5 else Decimal("0.1")
                world.market.rates[currency] = rate = RATES[currency] * factor
                world.market.least_rates[currency] = min(rate, world.market.least_rates[currency])
                world.switches.note("B3")
            case "B8":
                world.user.order_by_hand(incident.arg)
            case "B9":
                if world.user.lower_budget(home):
                    world.switches.note("B9")
            case "C3" if len(home.processes) == 1:
                world.switches.note("C3")
                world.turns.start(home, offset_s=(incident.arg - 0.5) * 60)
            case "C3k" if len(home.processes) == 1:
                folder = KeyFolder(f"{home.fleet_name} elsewhere")
                home.key_folders.append(folder)
                # Both machines keep the same time, to half a minute; D1 sets both.
                first = home.processes[0]
                offset_s = first.clock.offset_s + (incident.arg - 0.5) * 60
                second = world.turns.start(home, offset_s=offset_s, key_folder=folder)
                second.has_jumped_s = first.has_jumped_s
            case "C4" if len(world.homes) == 1:
                world.switches.note("C4")
                other = world.make_home("other", on_sqlite=False)
                world.homes.append(other)
                world.turns.start(other, offset_s=0)
                world.user.wish(other, Wish(now_s, WishKind.DEPLOY, "other", 2, 14))
            case "D1":
                self._jump(home, incident.arg)
            case "D3":
                for process in home.processes:
                    process.clock.stalled_at_s = now_s
                world.switches.note("D3")
                world.agenda.plan_errand("stall ends", now_s + incident.lasts_s)
            case "D5":
                world.switches.note("D5")
                world.turns.bunched[home.processes[0].name] = 4
            case "E4":
                for process in home.processes:
                    if process.store is not None:
                        process.store.is_torn = True
                world.agenda.plan_errand("restore", now_s + 1800 * incident.arg)
            case "E5":
                world.switches.note("E5")
                self.run_errand("restore")
            case "E6":
                world.switches.note("E6")
                self._lose_memory(home)
                home.house.delete()
            case "F14":
                spot = [order for order in mine if order.is_spot]
                if spot:
                    world.switches.note("F14")
                    order = spot[int(incident.arg * len(spot))]
                    world.market.end(order, now_s, "outbid")
                    world.market.taken_until_s[order.host.server_id] = now_s + 3600
            case "F14o":
                spot = [order for order in mine if order.is_spot and order.rival is None]
                if spot:
                    world.switches.note("F14o")
                    order = spot[int(incident.arg * len(spot))]
                    # From little more than our bid to more than the server costs on demand.
                    more = Decimal("1.02") + Decimal(str(round(incident.arg * 7 % 1, 3)))
                    until_s = now_s + incident.lasts_s
                    world.market.outbid(order, order.price * more, until_s)
                    world.agenda.note_change(until_s)
                    world.agenda.plan_errand("rivals leave", until_s)
            case _:
                pass

    def _jump(self, home: Home, arg: float) -> None:
        jumps = (3600.0, -3600.0, 86_400.0, -86_400.0, 900.0, -900.0)
        for process in home.processes:
            process.clock.offset_s += jumps[int(arg * len(jumps))]
            process.has_jumped_s = self._world.time.now_s
        self._world.switches.note("D1")

    def run_errand(self, errand: str) -> None:
        home = self._world.homes[0]
        match errand:
            case "back up":
                home.house.back_up()
                self._world.agenda.plan_errand("back up", self._world.time.now_s + _BACKUP_EVERY_S)
            case "tidy":
                for each in self._world.homes:
                    self._world.user.tidy(each)
                self._world.agenda.plan_errand("tidy", self._world.time.now_s + 6 * 3600)
            case "tidy once":
                self._world.user.tidy(home)
                self._world.user.repeat_wishes(home)
            case "restore":
                self._lose_memory(home)
                home.house.restore()
            case "rivals leave":
                self._world.market.end_rivals()
            case "stall ends":
                for process in home.processes:
                    process.clock.stalled_at_s = None

    def _lose_memory(self, home: Home) -> None:
        """The store is replaced: nobody may have it open."""
        home.has_lost_memory = True
        self._world.judge.forget(home)
        for process in home.processes:
            process.end()
            self._world.agenda.plan_turn(process, self._world.time.now_s + 60)
        self._world.agenda.plan_errand("tidy once", self._world.time.now_s + _TIDY_AFTER_S)
