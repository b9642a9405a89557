"""A refusal, in the shape that OpenAI clients read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

TOO_MANY = 429
CLIENT_LEFT = 499
"""Nobody reads it; it is what the records say."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request was not answered. `retry_after_s` when trying again may help."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        if self.status == TOO_MANY:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)
