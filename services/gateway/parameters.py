"""Query parameters that lists have in common."""

from typing import Annotated, Literal

from fastapi import Depends, Query

from libs.common.records.paging import PageQuery

# The id of an item, from which a page is counted.
Cursor = Annotated[str | None, Query(max_length=128)]


def page_query(
    after: Cursor = None,
    before: Cursor = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> PageQuery:
    """The page that a client asks for, newest first unless it says otherwise."""
    return PageQuery(after, limit, order, before)


PageDep = Annotated[PageQuery, Depends(page_query)]
