"""Asking a URL that a client named: the addresses that were judged are those that are connected to."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import httpx

from libs.common.errors import ErrorCode, RetryableError
from libs.common.outbound.addresses import Address, Policy, Target, refused

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

_CONNECT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 20.0
_RESOLVE_SECONDS: Final = 5.0
_MAX_ADDRESSES: Final = 4


async def resolved(host: str, port: int) -> list[Address]:
    """The addresses of a host, as the system has them.

    Raises:
        OSError: there are none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found))


class Outbound:
    """Requests to URLs that clients named: no redirects, no proxies of the environment, no compression.

    Args:
        policy: what may be asked.
        resolve: finds a host's addresses.
        verify: whom to trust for https; the system's authorities unless given.
    """

    def __init__(self, policy: Policy, *, resolve: Resolve = resolved, verify: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._resolve = resolve
        self._verify = ssl.create_default_context() if verify is None else verify

    @asynccontextmanager
    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, content: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """One request; the response's body is to be read by `aiter_raw`. A redirect is a response like any other.

        Raises:
            PermanentError: INVALID_URL, where it may not be asked.
            RetryableError: DOWNLOAD_FAILED, where the host cannot be found, reached or understood.
        """
        target = self._policy.checked(url)
        addresses = await self._addresses(target)
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout, verify=self._verify)
        async with client:
            response = await _asked(client, method, target, addresses, dict(headers or {}), content)
            try:
                with _failures():
                    yield response
            finally:
                await response.aclose()

    async def _addresses(self, target: Target) -> Sequence[Address]:
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                addresses = await self._resolve(target.host, target.port)
        except (OSError, TimeoutError, UnicodeError):
            raise _failed("The host of the URL cannot be found.") from None
        if not addresses:
            raise _failed("The host of the URL cannot be found.")
        self._policy.judge(target, addresses)
        return addresses[:_MAX_ADDRESSES]


async def _asked(
    client: httpx.AsyncClient,
    method: str,
    target: Target,
    addresses: Sequence[Address],
    headers: dict[str, str],
    content: bytes | None,
) -> httpx.Response:
    """The response of the first address that can be connected to."""
    headers |= {"host": target.authority, "accept-encoding": "identity"}
    for address in addresses:
        host = f"[{address}]" if address.version == 6 else str(address)
        url = f"{target.scheme}://{host}:{target.port}{target.path}"
        # The certificate is checked for the name, whatever address it is at.
        request = client.build_request(
            method, url, headers=headers, content=content, extensions={"sni_hostname": target.host}
        )
        with _failures():
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # nothing was sent
    raise _failed("The host of the URL cannot be reached.")


@contextmanager
def _failures() -> Iterator[None]:
    # Causes are left out: they name addresses.
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
        raise _failed("The host of the URL gave no whole answer.") from None


def _failed(message: str) -> RetryableError:
    return RetryableError(ErrorCode.DOWNLOAD_FAILED, message)


def refuse_unless_ok(response: httpx.Response) -> None:
    """Make sure that a response is what was asked for, as it is.

    Raises:
        PermanentError: INVALID_URL, for redirects, refusals and compressed answers.
        RetryableError: DOWNLOAD_FAILED, where another time may do.
    """
    status = response.status_code
    if status >= 500 or status in (408, 425, 429):
        raise _failed(f"The URL answered with status {status}.")
    if 300 <= status < 400:
        raise refused("The URL is redirected, which is not followed. Give the address it leads to.")
    if status != 200:
        raise refused(f"The URL answered with status {status}.")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise refused("The URL answered with compressed content, which was not asked for.")
