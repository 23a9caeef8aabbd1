"""The errors a route answers with: one shape, words for people, and what a client can act on."""

from __future__ import annotations

import math
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

_CODES: Final = {404: "not_found", 405: "bad_method", 413: "too_large"}


class Said(BaseModel):
    """What is wrong: a word for programs, a sentence for people, each place of a request that is not well."""

    code: str
    message: str
    problems: list[dict[str, Any]] = []


class Problem(BaseModel):
    """The body of every answer that is no success."""

    error: Said


RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The request makes no sense: the message says what does.",
        401: "A key is needed, or this one is wrong.",
        403: "Who asks may not do this here.",
        404: "There is none, or none that who asks may read.",
        413: "More than is taken at once.",
        422: "The request is not as it should be; `problems` says where.",
        503: "Not now: ask again after `Retry-After` seconds.",
    }.items()
}
"""What any route may answer, for its description."""


_STATUS: Final = {
    "slow": 408,
    "conflict": 409,
    "bad_type": 415,
    "range": 416,
    "protocol": 426,
    "busy": 429,
    "full": 507,
}


def also(**answers: str) -> dict[int | str, dict[str, Any]]:
    """Further errors of a route: `also(conflict="...")`."""
    return {_STATUS[name]: {"model": Problem, "description": text} for name, text in answers.items()}


UPLOAD_RESPONSES: Final[dict[int | str, dict[str, Any]]] = also(
    slow="The body came too slowly.",
    conflict="A stream has other frames under these numbers, or earlier ones are missing.",
    bad_type="Another content type is needed.",
    protocol="No version of the protocol is common to both.",
    busy="This key asks too often: again after `Retry-After` seconds.",
    full="The disk is full: again after `Retry-After` seconds.",
)
"""Of routes that take something in."""


class ApiError(Exception):
    """An answer that is no success.

    Args:
        status: HTTP status.
        code: one word for programs.
        message: a sentence that says what to do.
        retry_after_s: when to come again.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        """The answer itself."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(math.ceil(self.retry_after_s))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": {"code": self.code, "message": _whole(self)}}, self.status, headers)


def install(app: FastAPI) -> None:
    """Answer errors of routes, and requests that are not as they should be, in this one shape."""
    app.add_exception_handler(ApiError, _as_it_is)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)


async def _as_it_is(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, ApiError)  # noqa: S101  # it is registered for nothing else
    return error.response()


async def _plain(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: a path or method there is not, a body that is no JSON."""
    del request
    assert isinstance(error, HTTPException)  # noqa: S101
    code = _CODES.get(error.status_code, "bad_request")
    answer = JSONResponse({"error": {"code": code, "message": str(error.detail)}}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)  # noqa: S101
    problems: list[dict[str, Any]] = [
        {"where": list(map(_whole, each["loc"])), "why": _whole(each["msg"])} for each in error.errors()
    ]
    message = "; ".join(f"{'.'.join(each['where'])}: {each['why']}" for each in problems)
    return JSONResponse({"error": {"code": "bad_request", "message": message, "problems": problems}}, 422)


def _whole(text: object) -> str:
    """A text without half characters, which a request may hold and an answer may not."""
    return str(text).encode(errors="replace").decode()
