"""Where each program of the one-machine stack listens, always on the loopback address."""

import random
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

LOOPBACK: Final = "127.0.0.1"
# Below the ports that the system hands to outgoing connections, which could take one between choosing and listening.
_FREE_RANGE: Final = range(20_000, 30_000)


@dataclass(frozen=True, slots=True)
class Ports:
    """One port per program; a worker's is that of its health server.

    The environment variable of a port is its field's name in capitals and `_PORT`: GATEWAY_PORT, CHAT_HEALTH_PORT.
    """

    gateway: int = 8080
    broker: int = 6390
    cache: int = 6391
    vectors: int = 6343
    models: int = 8091
    chat_health: int = 9101
    ingest_health: int = 9102
    batch_health: int = 9103
    conversations_health: int = 9104

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Ports":
        """The defaults, where the environment does not say otherwise.

        Raises:
            ValueError: a variable holds no port, or two programs were given the same one.
        """
        chosen = {field.name: environ.get(_variable(field.name), "") for field in fields(cls)}
        ports = cls(**{name: _port(name, text) for name, text in chosen.items() if text})
        if len(set(asdict(ports).values())) < len(chosen):
            raise ValueError("Two programs of the stack were given the same port.")
        return ports

    def as_environment(self) -> dict[str, str]:
        """The variables from which `from_environment` makes the same ports."""
        return {_variable(name): str(port) for name, port in asdict(self).items()}


def free_ports() -> Ports:
    """Ports that nothing listens on at the moment, so that several stacks can run side by side."""
    names = [field.name for field in fields(Ports)]
    return Ports(**dict(zip(names, _free(len(names)), strict=True)))


def free_port() -> int:
    """One port that nothing listens on at the moment."""
    return _free(1)[0]


def _free(count: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(_FREE_RANGE, len(_FREE_RANGE)):
        if len(found) == count:
            return found
        if _can_listen(port):
            found.append(port)
    raise OSError(f"Fewer than {count} free ports between {_FREE_RANGE.start} and {_FREE_RANGE.stop}.")


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _variable(name: str) -> str:
    return f"{name.upper()}_PORT"


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        raise ValueError(f"{_variable(name)} must be a port between 1 and 65535.")
    return int(text)
