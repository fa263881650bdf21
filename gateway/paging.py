"""The paging headers of every list."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import request

PAGE_HEADERS = ["X-Total-Count", "Link"]


def page_headers(query: Mapping[str, Any], total: int) -> dict[str, str]:
    """{name: value} of PAGE_HEADERS for the requested list.

    query: as contracts.types.PageQuery loads it. total: the number of items in the whole list.
    Links are relative to the requested address, as a proxy may know it by another path. They use `page` where the
    request does.
    """
    limit, offset = query["limit"], query["offset"]
    start = offset % limit
    last = start + (total - 1 - start) // limit * limit if total > start else 0
    offsets = {"first": 0, "prev": max(0, min(offset - limit, last)), "next": offset + limit, "last": last}
    if offset == 0:
        del offsets["prev"]
    if offset + limit >= total:
        del offsets["next"]
    given = request.args.to_dict()
    position = next((name for name in ("page", "skip") if name in given), "offset")
    links = []
    for relation, to in offsets.items():
        parameters = urlencode({**given, position: to // limit + 1 if position == "page" else to})
        links.append(f'<?{parameters}>; rel="{relation}"')
    return {"X-Total-Count": str(total), "Link": ", ".join(links)}
