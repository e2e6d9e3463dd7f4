"""From the environment to a configured program, or to one line that says what to change."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

from libs.common import logs
from libs.common.errors import ConfigurationError
from libs.common.keyring import KeyringError
from libs.common.settings import CommonSettings

SettingsT = TypeVar("SettingsT", bound=CommonSettings)
BuiltT = TypeVar("BuiltT")

_log = logs.get_logger(__name__)


def configured(settings: type[SettingsT], build: Callable[[SettingsT], BuiltT]) -> BuiltT:
    """What `build` makes of the settings in the environment; ends the process plainly where they are at fault."""
    with plain_exit(settings.model_fields["service_name"].default):
        return build(settings())


@contextmanager
def plain_exit(program: str) -> Iterator[None]:
    """End the process with one line in the log where settings or keyring are at fault.

    The status is 78 (EX_CONFIG of sysexits.h): starting again changes nothing until somebody changes the configuration.
    """
    try:
        yield
    except (ValidationError, SettingsError, KeyringError, ConfigurationError) as error:
        logs.configure_logging(program, "INFO")
        _log.error("cannot start: the configuration is at fault", reason=_reason(error))
        sys.exit(os.EX_CONFIG)


def _reason(error: ValidationError | SettingsError | KeyringError | ConfigurationError) -> str:
    if isinstance(error, KeyringError):
        return f"{error} See KEYRING and KEYRING_FILE."
    if isinstance(error, ConfigurationError):
        return str(error)
    if isinstance(error, SettingsError):
        return f"{error}."  # names the variable's field, never its value
    # Without the values: one of them may be a secret in the wrong place.
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    lines = (f"{str(fault['loc'][0]).upper()}: {fault['msg'].removeprefix('Value error, ')}" for fault in faults)
    return "; ".join(lines) + "."
