"""The scenarios: what is asked for, by how many, in which way."""

from collections.abc import Callable
from typing import Final

from attrs import evolve, frozen

from bench.harness import Plan
from bench.processes import descriptors, shrunk
from bench.shapes import Shape

SPARE: Final = 512
SPARE_SHARE: Final = 0.25
"""Descriptors for everything but connections; at most so large a share of those that can be had."""

EACH: Final = 2
"""Descriptors of a gateway for each stream: the client's connection and the provider's."""


@frozen
class Case:
    """One row of a scenario.

    Attributes:
        label: for people.
        shape: of the answers, given the length of the window.
        plan: how they are asked for, given the same.
        load: what the request carries.
        fresh: every round begins with targets that have just been started, because memory is not given back.
        capacity_share: the rate is this share of what the target can do; see `capacity_shape`.
        saturates: more is asked for than a gateway can do, so streams are cut at the end.
    """

    label: str
    shape: Callable[[float], Shape]
    plan: Callable[[float], Plan]
    load: str = "small"
    fresh: bool = False
    capacity_share: float = 0.0
    saturates: bool = False

    def fitted(self, seconds: float, connections_max: int | None = None) -> tuple[Shape, Plan, str]:
        """Shape and plan, with as many connections as descriptors can be had for, and what there is to say of it."""
        shape, plan = self.shape(seconds), self.plan(seconds)
        if shape.stream:
            plan = evolve(plan, expect=shape.events if plan.mode in ("loop", "open", "once") else 0)
        said, wanted = "", plan.connections
        if connections_max is not None and connections_max < wanted:
            plan = evolve(plan, connections=connections_max)
            said = f"{self.label}: {connections_max:,} connections instead of {wanted:,}, as asked"
        granted = descriptors(EACH * plan.connections + SPARE)
        fits = shrunk(plan.connections, granted, EACH, min(SPARE, int(SPARE_SHARE * granted)))
        if fits < plan.connections:
            plan = evolve(plan, connections=fits)
            said = (
                f"{self.label}: shrunk to {fits:,} connections instead of {wanted:,}, "
                f"because no more than {granted:,} descriptors may be open"
            )
        return shape, plan, said


@frozen
class Scenario:
    """A list of cases under one name."""

    text: str
    cases: tuple[Case, ...]


RAMP: Final = 1.0
WARM: Final = 1.0


def _at_once(count: int) -> Case:
    return Case(
        f"{count} at once",
        lambda _seconds: Shape(),
        lambda seconds: Plan("loop", count, seconds, drain=5.0),
    )


def _paced(streams: int, per_second: int, *, saturates: bool = False) -> Case:
    """Streams that last as long as everything else, so that none begins or ends in the window."""
    return Case(
        f"{streams:,} streams × {per_second}/s",
        lambda seconds: Shape(int(per_second * (RAMP + WARM + seconds + 0.5)), 1_000_000 // per_second),
        lambda seconds: Plan("loop", streams, seconds, RAMP, WARM, drain=1.0 if saturates else RAMP + 5.0),
        saturates=saturates,
    )


def _idle(streams: int) -> Case:
    """Streams that have had their first event, and wait for the second."""
    return Case(
        f"{streams:,} open streams",
        lambda _seconds: Shape(2, 3_600_000_000),
        lambda seconds: Plan("hold", streams, min(seconds, 5.0), ramp=streams / 1000, warm=0.0, drain=60.0),
        fresh=True,
    )


FIRST_TOKEN: Final = Shape(events=5, gap_us=10_000, first_us=50_000)

SCENARIOS: Final = {
    "requests": Scenario(
        "answers that are not streamed, by 1, 32, 64, 128 and 512 clients at once",
        tuple(_at_once(count) for count in (1, 32, 64, 128, 512)),
    ),
    "saturated": Scenario(
        "streams faster than a gateway is: 400 × 250 events/s, and 32 as fast as they go",
        (
            _paced(400, 250, saturates=True),
            Case(
                "32 streams, back to back",
                lambda _seconds: Shape(2000),
                lambda seconds: Plan("loop", 32, seconds, drain=1.0),
                saturates=True,
            ),
        ),
    ),
    "paced": Scenario(
        "streams on a timetable: 200 × 100 events/s and 1,000 × 20 events/s",
        (_paced(200, 100), _paced(1000, 20)),
    ),
    "first": Scenario(
        "time to first byte at 30 % of capacity; the provider takes 50 ms to its first token",
        (
            Case(
                "paced at 30 %",
                lambda _seconds: FIRST_TOKEN,
                lambda seconds: Plan("open", 4000, seconds, warm=1.0, drain=5.0),
                capacity_share=0.3,
            ),
        ),
    ),
    "idle": Scenario("10,000 open streams with nothing to say: memory for each", (_idle(10_000),)),
    "burst": Scenario(
        "500 new connections with a stream each at one instant, until all are answered",
        (
            Case(
                "500 at one instant",
                lambda _seconds: Shape(50, 20_000),
                lambda _seconds: Plan("once", 500, 30.0, warm=0.0, drain=0.0),
            ),
        ),
    ),
    "big": Scenario(
        "large requests: 1 MB of context, and 4 MB of images as base64",
        (
            Case(
                "1 MB of context, 4 at once",
                lambda _seconds: Shape(),
                lambda seconds: Plan("loop", 4, seconds, drain=10.0),
                load="context",
            ),
            Case(
                "4 MB of images, 2 at once",
                lambda _seconds: Shape(),
                lambda seconds: Plan("loop", 2, seconds, drain=10.0),
                load="images",
            ),
        ),
    ),
    "hangup": Scenario(
        "clients hang up in the middle of a stream: until the provider's connection is closed",
        (
            Case(
                "20 clients that leave",
                lambda _seconds: Shape(2000, 20_000),
                lambda seconds: Plan("leave", 20, seconds, drain=0.5),
            ),
        ),
    ),
}
"""Those that are run in rounds over all targets; `__main__` knows the others."""
