"""ETags of what clients may change at once, and the `If-Match` by which they say which revision they have seen."""

import re
from typing import Annotated, Final

from fastapi import Depends, Request

from libs.common.errors import ErrorCode, PermanentError

_TAG: Final = r'(?:W/)?"[\x21\x23-\x7e]*"'
_TAGS: Final = re.compile(rf"{_TAG}(?:\s*,\s*{_TAG})*")
_STRONG: Final = re.compile(r'(?<!W/)"([0-9]{1,18})"')


def etag_header(revision: int | None) -> dict[str, str]:
    """The header that tells a client which revision it got."""
    return {} if revision is None else {"etag": f'"{revision}"'}


def if_match(request: Request) -> tuple[int, ...] | None:
    """The revisions that `If-Match` allows; None for any, where it is missing or `*`.

    What is no tag of ours matches nothing, nor does a weak one (RFC 9110, 13.1.1).

    Raises:
        PermanentError: INVALID_VALUE for what is no list of tags.
    """
    sent = ", ".join(request.headers.getlist("if-match")).strip()
    if not sent or sent == "*":
        return None
    if not _TAGS.fullmatch(sent):
        raise PermanentError(
            ErrorCode.INVALID_VALUE, 'If-Match must hold ETags in quotes, or be "*".', param="If-Match"
        )
    return tuple(int(revision) for revision in _STRONG.findall(sent))


IfMatchDep = Annotated[tuple[int, ...] | None, Depends(if_match)]
