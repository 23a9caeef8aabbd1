"""The errors a route answers with: one shape, words for people, and what a client can act on."""

from __future__ import annotations

import math

from fastapi.responses import JSONResponse


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
        return JSONResponse({"error": {"code": self.code, "message": str(self)}}, self.status, headers)
