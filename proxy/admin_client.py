"""How commands reach a running gateway: its admin listener, over loopback, with the token from the state directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from attrs import frozen

from proxy.errors import Kind, Rejected
from proxy.types import Secret

ADDRESS_FILE: Final = "gateway.json"
TOKEN_FILE: Final = "admin-token"  # noqa: S105 - the name of a file
TIMEOUT_SECONDS: Final = 60.0
LONG_SECONDS: Final = {"verify": 3600.0, "export_begin": 600.0}
"""Operations that take their time on large books, or on a slow store; everything else answers at once."""


class Unreachable(Exception):
    """The gateway does not answer at the address that its state directory names."""


@frozen
class Address:
    """What a running gateway writes into its state directory."""

    base_url: str
    admin_url: str
    pid: int


@frozen
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@frozen
class AdminClient:
    """A running gateway, as its operator sees it."""

    address: Address
    token: Secret

    @classmethod
    def of(cls, state_dir: Path) -> "AdminClient":
        """Find the gateway that runs on a state directory.

        Raises:
            Unreachable: the directory names none.
        """
        try:
            address = msgspec.json.decode((state_dir / ADDRESS_FILE).read_bytes(), type=Address)
            token = Secret((state_dir / TOKEN_FILE).read_text("ascii").strip())
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            raise Unreachable(
                f"another process holds the books in {state_dir}, but no gateway has said where it listens"
            ) from None
        return cls(address, token)

    def call(self, operation: str, arguments: bytes) -> dict[str, Any]:
        """Run an operation there.

        Raises:
            Rejected: the gateway says no.
            Unreachable: it does not answer.
        """
        answer = self.send(
            "POST",
            f"{self.address.admin_url}/admin/{operation}",
            {"authorization": f"Bearer {self.token.reveal()}", "content-type": "application/json"},
            arguments,
            timeout_seconds=LONG_SECONDS.get(operation, TIMEOUT_SECONDS),
        )
        try:
            decoded: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
            if answer.status >= 400:
                raise Rejected(Kind.BAD_REQUEST, str(decoded["error"]["message"]), status=answer.status)
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise Unreachable(
                f"what answers at {self.address.admin_url} is no gateway's admin listener"
            ) from None
        return decoded

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Answer:
        """Send one HTTP request. Raises `Unreachable`."""
        try:
            with httpx.Client(trust_env=False, timeout=timeout_seconds) as client:
                answer = client.request(method, url, headers=dict(headers), content=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"{url} does not answer: {error or type(error).__name__}") from None
        return Answer(answer.status_code, dict(answer.headers), answer.content)
