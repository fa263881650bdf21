"""What every list says of its pages."""

from urllib.parse import urlencode

from flask import request

PAGE_HEADERS = ["X-Total-Count", "Link"]


def page_headers(query, total):
    """PAGE_HEADERS, by name, for the list that is asked for.

    query: as contracts.types.PageQuery loads it. total: how many things the whole list has.
    Links are relative to the address that was asked, which a proxy may know by another path, and speak of pages where
    the client does.
    """
    limit, offset = query["limit"], query["offset"]
    start = offset % limit
    last = start + (total - 1 - start) // limit * limit if total > start else 0
    offsets = {"first": 0, "prev": max(0, min(offset - limit, last)), "next": offset + limit, "last": last}
    if offset == 0:
        del offsets["prev"]
    if offset + limit >= total:
        del offsets["next"]
    links = (f'<?{_parameters(limit, to)}>; rel="{relation}"' for relation, to in offsets.items())
    return {"X-Total-Count": str(total), "Link": ", ".join(links)}


def _parameters(limit, offset):
    given = request.args.to_dict()
    position = next((name for name in ("page", "skip") if name in given), "offset")
    return urlencode({**given, position: offset // limit + 1 if position == "page" else offset})
