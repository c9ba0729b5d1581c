"""Descriptors: how many the system grants us, and how many connections fit into that.

Whatever opens files fails where they have run out, and DuckDB then ends the whole process. So it must not be in
anybody's power to use them up by opening connections.
"""

import sys
from math import inf
from typing import Final

from attrs import evolve

from proxy.config import RequestLimits

if sys.platform != "win32":
    import resource

RESERVED: Final = 128
"""For everything but connections: journal, store, archive, listeners, the admin's connections, libraries."""


def granted() -> float:
    """Raise our limit as far as we may; gives how many descriptors that are."""
    if sys.platform == "win32":  # which knows no such limit
        return inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS grants less than it says
            return soft
    return inf if hard == resource.RLIM_INFINITY else hard


def fitted(limits: RequestLimits, most: float, each: int = 2) -> RequestLimits:
    """The same limits, with no more requests and connections than there can be descriptors for.

    Args:
        limits: as configured.
        most: how many descriptors there can be.
        each: how many a request takes: its client's connection and the provider's.
    """
    if most == inf:
        return limits
    room = max(int(most) - RESERVED, each)
    requests = min(limits.requests_max, room // each)
    connections = min(limits.connections_max, room - requests * (each - 1))
    return evolve(limits, requests_max=requests, connections_max=connections)
