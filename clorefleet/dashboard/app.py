"""The dashboard's routes. Each answer is one reading of the store; a live page is that reading repeated.

    /<random>/            the fleet            /<random>/sign-in       takes a link's code
    /<random>/d/NAME      one deployment       /<random>/d/NAME/stop   asks; a POST does it
    .../plans costs timeline events hosts logs       ...?live=1              the content as server-sent events

All of it lies below a path that nobody can guess: browsers send cookies to every port of a host, but only
below the cookie's path, so that another program's server on this machine is never sent ours.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clorefleet.dashboard import guard, pages, reading, wishing
from clorefleet.dashboard.sign_in import SESSION_LIFE, Links, Session, Sessions
from clorefleet.domain.errors import BadInput, ClorefleetError, StoreError
from clorefleet.store.database import Store
from clorefleet.store.queries import Transaction

COOKIE = "clorefleet-dashboard"
BODY_BYTES_MAX = 4096
STREAMS_MAX = 12
LIVE_EVERY_S = 1.0
SILENT_S_MAX = 5.0
"""A page that has not changed is sent all the same: a browser that hears nothing for long says so."""
SHARE_OF_TIME = 0.1
"""A reading that takes long is repeated more seldom: at most this share of a core goes into one page."""
Read = Callable[[Transaction, Request, datetime], object | None]


@dataclass(frozen=True, slots=True)
class Page:
    template: str
    title: str
    read: Read
    """None: there is no such thing."""


@dataclass
class Dashboard:
    """What the routes need; made once per process."""

    store: Store
    sources: reading.Sources
    now: Callable[[], datetime]
    """On the fleet's clock."""
    links: Links
    sessions: Sessions
    wake: Callable[[], None]
    """A wish was written: let the daemon look at it."""
    port: int
    profile_name: str
    flag: str
    """What to add to a command so that it means this profile."""
    is_sandbox: bool
    base: str = field(default_factory=lambda: f"/{secrets.token_urlsafe(16)}")
    ended: threading.Event = field(default_factory=threading.Event)
    live_every_s: float = LIVE_EVERY_S
    _streams: int = 0

    def __post_init__(self) -> None:
        self._environment = pages.environment(self.flag)

    @property
    def url(self) -> str:
        return f"http://{guard.HOST}:{self.port}{self.base}"

    def link(self) -> str:
        """A new one-time link. The code is in its fragment, which no browser sends anywhere."""
        return f"{self.url}/sign-in#{self.links.issue()}"

    def asgi(self) -> ASGIApp:
        inside = [
            Route("/", self._page(Page("fleet.html", "Fleet", self._fleet))),
            Route("/d/{name}", self._page(Page("deployment.html", "Deployment", self._deployment))),
            Route("/timeline", self._page(Page("timeline.html", "Timeline", self._timeline))),
            Route("/costs", self._page(Page("costs.html", "Costs", self._costs))),
            Route("/plans", self._page(Page("plans.html", "Plans", lambda tx, *_: reading.read_plans(tx)))),
            Route("/events", self._page(Page("events.html", "Events", self._events))),
            Route("/hosts", self._page(Page("hosts.html", "Hosts", self._hosts))),
            Route("/hosts/{server:int}", self._page(Page("host.html", "Host", self._host))),
            Route("/logs", self._page(Page("logs.html", "Logs", self._logs))),
            Route("/d/{name}/stop", self.ask_stop, methods=["GET"]),
            Route("/d/{name}/stop", self.stop, methods=["POST"]),
            Route("/d/{name}/scale", self.ask_scale, methods=["GET"]),
            Route("/d/{name}/scale", self.scale, methods=["POST"]),
            Route("/sign-in", self.sign_in_page, methods=["GET"]),
            Route("/sign-in", self.sign_in, methods=["POST"]),
            Route("/sign-out", self.sign_out, methods=["POST"]),
            Mount("/static", StaticFiles(directory=pages.STATIC)),
        ]
        app = Starlette(
            routes=[Mount(self.base, routes=inside)],
            exception_handlers={
                HTTPException: self._on_http_error,
                ClorefleetError: self._on_our_error,
                Exception: self._on_fault,
            },
        )
        # Around it, not as its middleware: Starlette answers faults outside of those.
        return _Guarded(app, self.port)

    # -- what the pages show

    def _fleet(self, tx: Transaction, request: Request, now: datetime) -> object:
        return reading.read_fleet(tx, now)

    def _deployment(self, tx: Transaction, request: Request, now: datetime) -> object | None:
        return reading.read_deployment(tx, request.path_params["name"], now)

    def _timeline(self, tx: Transaction, request: Request, now: datetime) -> object:
        return reading.read_timeline(tx, request.query_params.get("span", ""), now)

    def _costs(self, tx: Transaction, request: Request, now: datetime) -> object:
        return reading.read_costs(tx, request.query_params.get("span", ""), now)

    def _events(self, tx: Transaction, request: Request, now: datetime) -> object:
        return reading.read_events(tx, request.query_params.get("deployment", ""))

    def _hosts(self, tx: Transaction, request: Request, now: datetime) -> object:
        return reading.read_hosts(tx, now)

    def _host(self, tx: Transaction, request: Request, now: datetime) -> object | None:
        return reading.read_host(tx, self.sources, request.path_params["server"], now)

    def _logs(self, tx: Transaction, request: Request, now: datetime) -> object:
        return reading.read_logs(tx, self.sources, now)

    # -- showing them

    def _page(self, page: Page) -> Callable[[Request], Any]:
        async def show(request: Request) -> Response:
            self._session(request)
            if request.query_params.get("live") == "1":
                return self._stream(request, page)
            return HTMLResponse(await run_in_threadpool(self._whole, request, page))

        return show

    def _whole(self, request: Request, page: Page) -> str:
        """The page with its frame around the part that is live."""
        query = {key: value for key, value in request.query_params.items() if key in ("span", "deployment")}
        live = "&".join([f"{key}={quote(value)}" for key, value in query.items()] + ["live=1"])
        return self._rendered(
            "page.html",
            request,
            title=" ".join([*(str(each) for each in request.path_params.values()), page.title]),
            live_path=f"{request.url.path}?{live}",
            live_template=page.template,
            **self._values(request, page),
        )

    def _live(self, request: Request, page: Page) -> str:
        return self._rendered(page.template, request, **self._values(request, page))

    def _values(self, request: Request, page: Page) -> dict[str, object]:
        """
        Raises:
            HTTPException: there is no such thing.
        """
        now = self.now()
        with self.store.read() as tx:
            found = page.read(tx, request, now)
            if found is None:
                raise HTTPException(404)
            return {
                "page": found,
                "overview": reading.read_overview(tx, self.sources, now),
                "now": now,
            }

    def _rendered(self, template: str, request: Request, **values: object) -> str:
        session = self._find(request)
        return self._environment.get_template(template).render(
            base=self.base,
            path=request.url.path,
            csrf_token="" if session is None else session.csrf_token,
            is_signed_in=session is not None,
            profile_name=self.profile_name,
            command=self._command,
            is_sandbox=self.is_sandbox,
            steps=reading.STEPS,
            spans=tuple(reading.SPANS),
            cost_spans=tuple(reading.COST_DAYS),
            **values,
        )

    def _command(self, words: str) -> str:
        """To be typed into a terminal, for this profile."""
        return f"clorefleet {words}{self.flag}"

    def _stream(self, request: Request, page: Page) -> Response:
        if self._streams >= STREAMS_MAX:
            return PlainTextResponse("Too many pages are open.", 503, {"Retry-After": "10"})
        return StreamingResponse(self._events_of(request, page), media_type="text/event-stream")

    async def _events_of(self, request: Request, page: Page) -> AsyncIterator[str]:
        """The page's live part whenever it has changed, until the browser leaves or the session ends."""
        self._streams += 1
        loop = asyncio.get_running_loop()
        sent, sent_at = "", 0.0
        try:
            while not self.ended.is_set() and self._find(request) is not None:
                began = loop.time()
                try:
                    text = await run_in_threadpool(self._live, request, page)
                except (HTTPException, StoreError):
                    return  # the browser asks again, and is told why
                if text != sent or began - sent_at > SILENT_S_MAX:
                    sent, sent_at = text, began
                    yield "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
                took = loop.time() - began
                await asyncio.sleep(max(self.live_every_s, took / SHARE_OF_TIME))
        finally:
            self._streams -= 1

    # -- wishes

    async def ask_stop(self, request: Request) -> Response:
        self._session(request)
        return await run_in_threadpool(self._ask, request, "stop.html", wishing.ask_stop)

    async def ask_scale(self, request: Request) -> Response:
        self._session(request)
        chosen = request.query_params.get("replicas", "")

        def ask(tx: Transaction, name: str) -> wishing.Question | None:
            wish = reading.read_deployment(tx, name, self.now())
            if wish is None:
                return None
            replicas = _number(chosen) if chosen else wish.wish.replicas
            return wishing.ask_scale(tx, name, replicas, now=self.now())

        return await run_in_threadpool(self._ask, request, "scale.html", ask, is_chosen=bool(chosen))

    def _ask(
        self,
        request: Request,
        template: str,
        ask: Callable[[Transaction, str], wishing.Question | None],
        **values: object,
    ) -> Response:
        with self.store.read() as tx:
            question = ask(tx, request.path_params["name"])
        if question is None:
            raise HTTPException(404)
        return HTMLResponse(self._rendered(template, request, question=question, **values))

    async def stop(self, request: Request) -> Response:
        form = await self._form(request)
        name = request.path_params["name"]
        await run_in_threadpool(wishing.wish_stop, self.store, name, form["before"], now=self.now())
        return await self._done(request, name)

    async def scale(self, request: Request) -> Response:
        form = await self._form(request)
        name, replicas = request.path_params["name"], _number(form["replicas"])
        await run_in_threadpool(
            wishing.wish_scale, self.store, name, form["before"], replicas, now=self.now()
        )
        return await self._done(request, name)

    async def _done(self, request: Request, name: str) -> Response:
        """The wish is durable; whether anybody acts on it now is another matter, and is said."""
        try:
            await run_in_threadpool(self.wake)
        except ClorefleetError as error:
            what = "Your wish is written down, but no daemon runs that would act on it."
            return self._said(request, 503, what, error.remedy, f"{error.what} {error.money}")
        return RedirectResponse(f"{self.base}/d/{quote(name, safe='')}", 303)

    # -- sessions

    async def sign_in_page(self, request: Request) -> Response:
        return HTMLResponse(self._rendered("sign_in.html", request, is_refused=False))

    async def sign_in(self, request: Request) -> Response:
        """A link's code for a session. Needs no token of a form: a page that could post here has no code."""
        form = await _fields(request)
        if not await run_in_threadpool(self.links.redeem, form["code"]):
            return HTMLResponse(self._rendered("sign_in.html", request, is_refused=True), 401)
        answer = RedirectResponse(f"{self.base}/", 303)
        answer.set_cookie(
            COOKIE,
            self.sessions.open(),
            max_age=int(SESSION_LIFE.total_seconds()),
            path=f"{self.base}/",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def sign_out(self, request: Request) -> Response:
        await self._form(request)
        self.sessions.close(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse(f"{self.base}/sign-in", 303)
        answer.delete_cookie(COOKIE, path=f"{self.base}/", httponly=True, samesite="strict")
        return answer

    def _find(self, request: Request) -> Session | None:
        return self.sessions.find(request.cookies.get(COOKIE, ""))

    def _session(self, request: Request) -> Session:
        """
        Raises:
            HTTPException: there is none.
        """
        session = self._find(request)
        if session is None:
            raise HTTPException(401)
        return session

    async def _form(self, request: Request) -> Mapping[str, str]:
        """The fields of a form that one of our own pages showed to this session.

        Raises:
            HTTPException: it was not.
        """
        session = self._session(request)
        form = await _fields(request)
        if not session.accepts(form["csrf_token"]):
            raise HTTPException(403)
        return form

    # -- errors

    def _on_http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 401:
            return HTMLResponse(self._rendered("sign_in.html", request, is_refused=False), 401)
        what, remedy = _HTTP_WORDS.get(status, ("That cannot be done.", ""))
        return self._said(request, status, what, remedy, "Nothing was changed.")

    def _on_our_error(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, ClorefleetError):
            return self._on_fault(request, error)
        status = 409 if isinstance(error, BadInput) else 503
        return self._said(request, status, error.what, error.remedy, error.money)

    def _on_fault(self, request: Request, error: Exception) -> Response:
        """No traceback in a page; the server's log has it."""
        return self._said(
            request,
            500,
            f"A fault in the dashboard: {type(error).__name__}.",
            "`clorefleet status` shows the fleet as well.",
            "Orders go on as they were.",
        )

    def _said(self, request: Request, status: int, what: str, remedy: str, money: str) -> Response:
        body = self._rendered("error.html", request, what=what, remedy=remedy, money=money)
        return HTMLResponse(body, status)


_HTTP_WORDS = {
    403: ("This form is not one that this session was shown.", "Go back, load the page again, and retry."),
    404: ("There is nothing here.", "The fleet page lists what there is."),
    405: ("This page cannot be asked that way.", ""),
    413: ("That is too much.", ""),
}


def _number(text: str) -> int:
    """
    Raises:
        BadInput: it is none.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise BadInput("That is no number of replicas.", money="Nothing was changed.")
    return int(text)


class _Fields(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return ""


async def _fields(request: Request) -> Mapping[str, str]:
    """A form's fields; a missing one is "".

    Raises:
        HTTPException: it is larger than any of ours, or no form.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413)
    found = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=8)
    return _Fields({name: values[-1] for name, values in found.items()})


class _Guarded:
    """The guard in front of everything, and its headers on every answer, refusals and faults included."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        by_name = {name: headers.getlist(name) for name in headers}
        refused = guard.refusal(scope["method"], by_name, self._port)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in guard.SECURITY_HEADERS.items()]
                names = {name for name, _ in added}
                message["headers"] = [
                    *(each for each in message.get("headers", ()) if each[0].lower() not in names),
                    *added,
                ]
            await send(message)

        app = self._app if refused is None else PlainTextResponse(f"{refused.text}\n", refused.status)
        await app(scope, receive, send_guarded)
