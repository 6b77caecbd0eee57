"""What a request passes before anything of it is read: its key and its size; and what every answer's head says."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from coda.serving.errors import ApiError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def read_keys(path: str) -> list[bytes]:
    """Digests of the keys in a file, one key per line. Raises ValueError if there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api_key_file is {path}, which cannot be read ({error}); give a text file of keys") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"api_key_file is {path}, which holds no key; write one per line")
    return [_digest(key.encode()) for key in keys]


class Guard:
    """ASGI middleware: asks for a key under ``/v1/`` and bounds the size of bodies.

    Args:
        app: What is guarded.
        keys: From :func:`read_keys`; none asks for no key.
        max_body: Bytes that a body may have.
    """

    def __init__(self, app: Any, keys: list[bytes], max_body: int) -> None:
        self.app, self.keys, self.max_body = app, keys, max_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = dict(scope["headers"])
        read = 0

        async def bounded() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body:
                raise HTTPException(413, self._too_large)
            return message

        async def headed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        refusal = self._refusal(scope["path"], sent)
        if refusal is not None:
            await refusal.response()(scope, receive, headed)
        else:
            await self.app(scope, bounded, headed)

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self.max_body} bytes, which is what this server takes"

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self.keys and path.startswith("/v1/") and not self._known(headers.get(b"authorization", b"")):
            message = "no key, or a wrong one; send the header Authorization: Bearer KEY"
            return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            return ApiError(413, self._too_large)
        return None

    def _known(self, header: bytes) -> bool:
        scheme, _, key = header.partition(b" ")
        given = _digest(key.strip())
        # All are compared, each in constant time: how long it takes tells nothing of the keys.
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
