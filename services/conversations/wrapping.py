"""Where data keys are wrapped: under the keyring, or by a key management service.

The setting KEY_WRAPPER names what makes the wrapper, as `module:callable`; it is called with the service's keyring.
Calls come from several threads, within transactions: a remote service must be quick, or keep what it has unwrapped.
"""

from pkgutil import resolve_name
from typing import Protocol, runtime_checkable

from libs.common import keys
from libs.common.keyring import Keyring


@runtime_checkable
class KeyWrapper(Protocol):
    """Seals the keys of conversations and stored responses."""

    def wrap(self, key: bytes, tenant_id: str, owner_id: str) -> bytes:
        """The key as it is stored, bound to its tenant and its conversation or response."""
        ...

    def unwrap(self, wrapped: bytes, tenant_id: str, owner_id: str) -> bytes:
        """The inverse of `wrap`.

        Raises:
            PermanentError: DECRYPT_FAILED, also for the key of another tenant, conversation or response.
        """
        ...

    def is_current(self, wrapped: bytes) -> bool:
        """Whether wrapping again would make no difference; False after a rotation."""
        ...


class KeyringWrapper:
    """Wraps under the active key of the keyring."""

    def __init__(self, keyring: Keyring) -> None:
        self._sealer = keyring.sealer(keys.CONVERSATIONS_PURPOSE)

    def wrap(self, key: bytes, tenant_id: str, owner_id: str) -> bytes:
        """See `KeyWrapper`."""
        return self._sealer.seal(key, tenant_id, owner_id)

    def unwrap(self, wrapped: bytes, tenant_id: str, owner_id: str) -> bytes:
        """See `KeyWrapper`."""
        return self._sealer.open(wrapped, tenant_id, owner_id)

    def is_current(self, wrapped: bytes) -> bool:
        """See `KeyWrapper`."""
        return self._sealer.is_current(wrapped)


def load_key_wrapper(reference: str, keyring: Keyring) -> KeyWrapper:
    """The wrapper that a setting names.

    Raises:
        ImportError, AttributeError, ValueError: there is no such thing.
        TypeError: what it makes is no wrapper.
    """
    wrapper = resolve_name(reference)(keyring)
    if not isinstance(wrapper, KeyWrapper):
        raise TypeError(f"'{reference}' does not make a key wrapper.")
    return wrapper
