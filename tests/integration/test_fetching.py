"""Asking URLs of clients, over loopback: what is connected to, what is believed, what is refused."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.outbound.addresses import Address, Policy
from libs.common.outbound.fetching import Outbound, Resolve, refuse_unless_ok

pytestmark = pytest.mark.timeout(60)
_LOOPBACK = ipaddress.ip_address("127.0.0.1")
_POLICY = Policy.parse("80,443", "")
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@contextmanager
def _serving(answer: bytes, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives every connection the same bytes: its port, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                    if tls is not None:
                        connection = tls.wrap_socket(connection, server_side=True)
                    with connection:
                        asked.append(connection.recv(65536))
                        connection.sendall(answer)
                except ssl.SSLError:
                    continue  # a client that does not trust us
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _at(*addresses: Address) -> Resolve:
    async def resolve(_host: str, _port: int) -> Sequence[Address]:
        return addresses

    return resolve


def _outbound(
    port: int, host: str = "files.test", resolve: Resolve | None = None, verify: ssl.SSLContext | None = None
) -> Outbound:
    return Outbound(Policy.parse("80,443", f"{host}:{port}"), resolve=resolve or _at(_LOOPBACK), verify=verify)


async def _body(outbound: Outbound, url: str) -> bytes:
    async with outbound.request("GET", url) as response:
        refuse_unless_ok(response)
        return b"".join([data async for data in response.aiter_raw()])


async def test_the_judged_address_is_connected_to_and_the_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with _serving(_OK) as (port, asked):
        assert await _body(_outbound(port), f"http://files.test:{port}/a/b?c=d#e") == b"hello"
    lines = asked[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a/b?c=d http/1.1"
    assert f"host: files.test:{port}" in lines
    assert "accept-encoding: identity" in lines
    assert not [line for line in lines if line.startswith(("cookie", "authorization"))]


async def test_an_address_that_does_not_answer_leaves_the_next_one() -> None:
    with _serving(_OK) as (port, _):
        nobody = ipaddress.ip_address("127.0.0.2")
        assert await _body(_outbound(port, resolve=_at(nobody, _LOOPBACK)), f"http://files.test:{port}/") == b"hello"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "169.254.169.254"])
async def test_a_name_at_a_private_address_is_refused_and_nobody_asked(address: str) -> None:
    outbound = Outbound(_POLICY, resolve=_at(ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address(address)))
    with pytest.raises(PermanentError) as caught:
        await _body(outbound, "https://rebinding.test/")
    assert caught.value.code is ErrorCode.INVALID_URL


async def test_the_system_s_own_resolver_is_judged_as_well() -> None:
    with pytest.raises(PermanentError, match="public"):
        await _body(Outbound(_POLICY), "https://localhost/")


async def test_a_host_that_is_not_there_may_be_later() -> None:
    async def nowhere(_host: str, _port: int) -> Sequence[Address]:
        raise socket.gaierror

    for resolve in (nowhere, _at()):
        with pytest.raises(RetryableError) as caught:
            await _body(Outbound(_POLICY, resolve=resolve), "https://files.test/")
        assert caught.value.code is ErrorCode.DOWNLOAD_FAILED


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", ErrorCode.INVALID_URL),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", ErrorCode.INVALID_URL),
        (b"HTTP/1.1 206 Partial\r\ncontent-length: 0\r\n\r\n", ErrorCode.INVALID_URL),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n", ErrorCode.INVALID_URL),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", ErrorCode.DOWNLOAD_FAILED),
        (b"HTTP/1.1 429 Slow down\r\ncontent-length: 0\r\n\r\n", ErrorCode.DOWNLOAD_FAILED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello", ErrorCode.DOWNLOAD_FAILED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nhello", ErrorCode.DOWNLOAD_FAILED),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000, ErrorCode.DOWNLOAD_FAILED),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ErrorCode.DOWNLOAD_FAILED),
        (b"", ErrorCode.DOWNLOAD_FAILED),
    ],
)
async def test_answers_that_are_no_file(answer: bytes, code: ErrorCode) -> None:
    with _serving(answer) as (port, asked):
        with pytest.raises(PlatformError) as caught:
            await _body(_outbound(port), f"http://files.test:{port}/?token=secret")
        assert len(asked) == 1
    assert caught.value.code is code
    for hidden in ("secret", "127.0.0.1", "OpenSSH", "files.test"):
        assert hidden not in caught.value.message


def _certificate(folder: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_certificate_is_checked_for_the_name_at_the_judged_address(tmp_path: Path) -> None:
    path = _certificate(tmp_path, "files.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    named: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: named.append(name)
    trusting = ssl.create_default_context(cafile=str(path))
    with _serving(_OK, server) as (port, _):
        assert await _body(_outbound(port, verify=trusting), f"https://files.test:{port}/") == b"hello"
        assert named == ["files.test"]
        for outbound, host in (
            (_outbound(port, "other.test", verify=trusting), "other.test"),
            (_outbound(port), "files.test"),
        ):
            with pytest.raises(RetryableError) as caught:
                await _body(outbound, f"https://{host}:{port}/")
            assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
