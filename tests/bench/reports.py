"""Reports as the bench writes them, with the figures that a test wants."""


def percentiles(p50, p99):
    return {"count": 100, "mean": p50, "p50": p50, "p95": (p50 + p99) / 2, "p99": p99, "max": p99}


def figures(*, cpu=None, events=0, answers=100, rate=100.0, first=None, added=None, stretch=None, **more):
    """Of one measurement."""
    found = {
        "answers": answers,
        "events": events,
        "failed": 0,
        "short": 0,
        "cut": 0,
        "late": 0,
        "trouble": "",
        "answers_per_second": rate,
        "events_per_second": rate * events / max(answers, 1),
        "harness_share": 0.3,
        "gateway_share": 0.95,
        "steal": 0.0,
        "first_byte_ms": first,
        "added_first_ms": added,
        "gap_stretch_ms": stretch,
        "event_delay_ms": None,
        **more,
    }
    if cpu is not None:
        found["cpu_us_per_event" if events else "cpu_us_per_answer"] = cpu
    return found


def case(rows, label="64 at once", **more):
    return {"case": label, "connections": 64, "saturates": False, "by_capacity": False, "rows": rows, **more}


def report(*cases, **more):
    return {
        "scenario": "requests",
        "date": "2026-11-21",
        "seconds": 5.0,
        "rounds": 3,
        "cores": "not pinned (2 cores)",
        "programs": "C",
        "on": {"direct": "no gateway", "farebox": "everything"},
        "said": [],
        "cases": list(cases),
        **more,
    }
