"""Which URLs of clients may be asked, and which addresses may be connected to.

`ipaddress.is_global` will not do: on Python 3.11 it passes multicast, NAT64 and 6to4 addresses, which reach inside. So
the ranges are listed here, as IANA's registries of special-purpose addresses have them.
"""

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from libs.common.errors import ErrorCode, PermanentError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_URL_CHARACTERS: Final = 2048
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DENIED_V4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers; also Alibaba's metadata
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host, of no special range
            "169.254.0.0/16",  # link-local; also metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; also Oracle's metadata
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_DENIED_V6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            # All but 2000::/3: loopback, mapped, compatible and translated v4, discard, unique local, link-local,
            # site-local, multicast, and what is not assigned.
            "::/3",
            "4000::/2",
            "8000::/1",
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds v4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# What resolvers take for a number: 127.1, 2130706433, 0x7f000001, 0177.0.0.1.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked, taken apart; `host` is in lower case and without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What goes into the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator allows.

    Args:
        ports: that may be asked at public addresses.
        private: hosts and ports that may be asked wherever they are.
    """

    ports: frozenset[int]
    private: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def parse(cls, ports: str, private_hosts: str) -> Self:
        """Both as lists with commas; a host without a port stands for the ports of http and https.

        Raises:
            ValueError: one of them is neither.
        """
        allowed: set[tuple[str, int]] = set()
        for entry in _entries(private_hosts):
            parts = urlsplit(f"//{entry}")
            if parts.hostname is None or "@" in entry or parts.path:
                raise ValueError("must be hosts with or without a port, separated by commas")
            given = [parts.port] if parts.port else _DEFAULT_PORTS.values()
            allowed |= {(parts.hostname, port) for port in given}
        return cls(frozenset(map(int, _entries(ports))), frozenset(allowed))

    def allows_private(self, target: Target) -> bool:
        """Whether the operator named this host with this port."""
        return (target.host, target.port) in self.private

    def checked(self, url: str) -> Target:
        """A URL taken apart; its addresses are still to be judged.

        Raises:
            PermanentError: INVALID_URL, with the reason.
        """
        target = _target(url)
        if self.allows_private(target):
            return target
        if target.port not in self.ports:
            raise refused(f"Port {target.port} is not allowed.")
        if (literal := _literal(target.host)) is not None:
            self.judge(target, [literal])
        return target

    def judge(self, target: Target, addresses: Collection[Address]) -> None:
        """Make sure that every one of a host's addresses may be connected to.

        Raises:
            PermanentError: INVALID_URL. Which address it was is not told: that would map the network inside.
        """
        if not self.allows_private(target) and any(map(is_denied, addresses)):
            raise refused("The host is not at a public address.")


def is_denied(address: Address) -> bool:
    """Whether an address is of a special range, or leads into one."""
    ranges = _DENIED_V4 if isinstance(address, ipaddress.IPv4Address) else _DENIED_V6
    return any(address in network for network in ranges)


def refused(reason: str) -> PermanentError:
    """The error for a URL that cannot be asked; it never repeats the URL, which may hold a secret."""
    return PermanentError(ErrorCode.INVALID_URL, reason, param="url")


def _target(url: str) -> Target:
    if len(url) > _MAX_URL_CHARACTERS:
        raise refused(f"The URL is longer than {_MAX_URL_CHARACTERS} characters.")
    # Parsers disagree about all others: where a host ends, what a backslash is, which digits are digits.
    if not url.isascii() or any(character <= " " or character in "\\\x7f" for character in url):
        raise refused("The URL must be of printable ASCII characters; write others in percent or punycode form.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused("The URL cannot be read.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise refused("The URL must begin with https:// or http://.")
    if "@" in parts.netloc:
        raise refused("The URL must not hold a user or a password.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, _host(parts), _DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    literal = _literal(host)
    bracketed = "[" in parts.netloc
    if literal is not None and bracketed == (literal.version == 6):
        return host
    labels = host.split(".")
    if bracketed or len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise refused("The URL must name a host, or an address in its usual form.")
    return host


def _literal(host: str) -> Address | None:
    if "%" in host:
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _entries(text: str) -> list[str]:
    return [entry.strip().lower() for entry in text.split(",") if entry.strip()]
