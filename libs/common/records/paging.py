"""Lists in pages, as every resource of the API gives them: a cursor is the id of the last item that was seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, select, tuple_

from libs.common.errors import ErrorCode, PermanentError

ItemT = TypeVar("ItemT")
OtherT = TypeVar("OtherT")

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page a client asks for: at most `limit` items, by time of creation.

    Behind the one with id `after`; or else the last ones ahead of `before`; with both, the first ones between them.
    """

    after: str | None = None
    limit: int = 20
    order: Order = "desc"
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """One page of a list, and whether there is another behind it."""

    items: list[ItemT]
    has_more: bool

    def of(self, convert: Callable[[ItemT], OtherT]) -> "Page[OtherT]":
        """The same page of other items."""
        return Page([convert(item) for item in self.items], self.has_more)


def listing(page: Page[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of a page whose items are JSON objects with an `id`."""
    return {
        "object": "list",
        "data": page.items,
        "first_id": page.items[0]["id"] if page.items else None,
        "last_id": page.items[-1]["id"] if page.items else None,
        "has_more": page.has_more,
    }


def read_page(
    connection: Connection,
    rows: Select[Any],
    keys: tuple[ColumnElement[float], ColumnElement[str]],
    query: PageQuery,
    *,
    scope: Sequence[ColumnElement[bool]],
    filters: Sequence[ColumnElement[bool]] = (),
) -> Page[RowMapping]:
    """One page of `rows`.

    Args:
        keys: the columns of creation time and id, by which the list is ordered.
        scope: whose list it is; the cursor must be in it.
        filters: which of its items are wanted; the cursor's need not be, since it may have changed meanwhile.

    Raises:
        PermanentError: INVALID_CURSOR for an unknown cursor and a foreign one alike.
    """
    wanted = rows.where(*scope, *filters)
    ascending = query.order == "asc"
    if query.after is not None:
        wanted = wanted.where(_beyond(keys, _cursor(connection, keys, scope, "after", query.after), later=ascending))
    if query.before is not None:
        ahead = _beyond(keys, _cursor(connection, keys, scope, "before", query.before), later=not ascending)
        wanted = wanted.where(ahead)
    # The last ones ahead of a cursor are the first ones on the way back from it.
    backwards = query.before is not None and query.after is None
    ordered = wanted.order_by(*(key.asc() if ascending != backwards else key.desc() for key in keys))
    found = list(connection.execute(ordered.limit(query.limit + 1)).mappings())
    items = found[: query.limit]
    return Page(items[::-1] if backwards else items, len(found) > query.limit)


def _beyond(
    keys: tuple[ColumnElement[float], ColumnElement[str]], cursor: Sequence[Any], *, later: bool
) -> ColumnElement[bool]:
    return tuple_(*keys) > tuple_(*cursor) if later else tuple_(*keys) < tuple_(*cursor)


def _cursor(
    connection: Connection,
    keys: tuple[ColumnElement[float], ColumnElement[str]],
    scope: Sequence[ColumnElement[bool]],
    param: str,
    item_id: str,
) -> Sequence[Any]:
    found = connection.execute(select(*keys).where(*scope, keys[1] == item_id)).one_or_none()
    if found is None:
        raise PermanentError(ErrorCode.INVALID_CURSOR, "The cursor is not the id of an item here.", param=param)
    return found
