"""Read a provider's usage counters without trusting them: what cannot be a count is left out and flagged."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import define, field

from pricing.usage import COUNT_MAX

COUNTER_MAX: Final = COUNT_MAX // 4
"""Above this no counter is believed; a few of them added up still fit into a bucket."""

_NAME: Final = re.compile(r"[^A-Za-z0-9_.:-]+", re.ASCII)


def flag(kind: str, name: object = None) -> str:
    """A flag for a record: foreign text in it is cut to a harmless word."""
    return kind if name is None else f"{kind}:{_NAME.sub('_', str(name))[:48]}"


@define(eq=False)
class Counters:
    """One usage object, being read; `flags` gathers what was odd about it.

    A counter that is missing or null is `None`, which is not the same as zero.
    """

    raw: Mapping[str, Any]
    flags: set[str] = field(factory=set)

    def count(self, name: str) -> int | None:
        """One counter."""
        value = self.raw.get(name)
        if value is None or (value.__class__ is int and 0 <= value <= COUNTER_MAX):
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= COUNTER_MAX:
            self.flags.add(flag("odd_counter", name))
            return None
        return value

    def inner(self, name: str) -> "Counters":
        """The counters within one field; empty where there are none. Flags are shared."""
        value = self.raw.get(name)
        return Counters(value if isinstance(value, Mapping) else {}, self.flags)

    def mode(self, kind: str, name: str, usual: Iterable[str]) -> None:
        """Flag a tier, speed or region that is not the one which has a price."""
        value = self.raw.get(name)
        if value is not None and value not in usual:
            self.flags.add(flag(kind, value))

    def unknown(self, known: frozenset[str], prefix: str = "") -> None:
        """Flag counters that nobody has told us about, and that say more than zero."""
        for name, value in self.raw.items():
            if name not in known and value and isinstance(value, int | float | Mapping | list):
                self.flags.add(flag("unknown_counter", f"{prefix}{name}"))


@define(eq=False)
class RunningTotal:
    """The newest word on each field of one answer's usage: nothing is ever added up.

    Attributes:
        fields: as the provider has them.
    """

    fields: dict[str, Any] = field(factory=dict)

    def take(self, usage: object) -> None:
        """Merge a report: what it states replaces, zero as well; what it leaves out (or has as null) stays."""
        if isinstance(usage, Mapping):
            self.fields.update((name, value) for name, value in usage.items() if value is not None)
