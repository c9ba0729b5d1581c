"""What error answers of all dialects have in common: the headers that tell a client whether to try again."""

import math

from proxy.errors import Failure
from proxy.types import Headers

JSON: Headers = (("content-type", "application/json"),)


def retry_headers(failure: Failure) -> Headers:
    """The headers about another try: the SDKs heed `x-should-retry` before anything else."""
    headers: list[tuple[str, str]] = []
    if failure.row.should_retry is not None:
        headers.append(("x-should-retry", "true" if failure.row.should_retry else "false"))
    if failure.retry_after_seconds is not None:
        milliseconds = max(0, math.ceil(failure.retry_after_seconds * 1000))
        headers.append(("retry-after", str(math.ceil(milliseconds / 1000))))
        headers.append(("retry-after-ms", str(milliseconds)))
    return tuple(headers)
