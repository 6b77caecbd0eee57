"""Errors as OpenAI's clients expect them: one JSON shape, whatever went wrong."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets an error as its answer.

    Args:
        status: HTTP status.
        message: What is wrong, and the way out.
        param: The field of the request that is.
        code: OpenAI's short name of the error, where there is one.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's JSON."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def failed() -> ApiError:
    """What a client is told of a bug: nothing of its insides."""
    return ApiError(500, "the server failed to answer this request; its log has the reason", code="internal_error")


def handle_errors(app: FastAPI) -> None:
    """Have every error of ``app`` answered in OpenAI's shape."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    async def bug(request: Request, error: Exception) -> JSONResponse:
        return failed().response()  # starlette raises it again behind this, and uvicorn logs it

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, bug)


def _invalid(error: RequestValidationError) -> ApiError:
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {found[0]['ctx']['error']}")
    # Of a field that takes several types, every type complains: the one that was meant of something else, or deeper in.
    first = max(
        found, key=lambda each: (not each["type"].endswith("_type"), _path(each["loc"][1:], error.body).count("."))
    )
    path = _path(first["loc"][1:], error.body)
    if first["type"] == "missing":
        path = ".".join([*([path] if path else []), str(first["loc"][-1])])
    return ApiError(400, f"{path or 'the body'}: {first['msg']}", param=path or None)


def _path(location: Sequence[str | int], body: Any) -> str:
    """Where in ``body`` something is wrong: ``location`` without the names of types that pydantic writes into it."""
    path = []
    for part in location:
        inside = part in body if isinstance(body, dict) else isinstance(body, list) and part in range(len(body))
        if inside:
            body = body[part]
            path.append(str(part))
    return ".".join(path)
