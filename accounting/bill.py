"""Which usage is charged when an answer ends in which way: one truth table, as data.

A ruling has two halves, because there are two bills: what the customer pays us and what the provider will
want from the operator. They differ where the failure is the provider's or ours: then the customer pays
nothing and the operator has the cost.

An estimate is never cheaper than the report would have been, else hanging up would be a discount: content
counts by frames or by bytes at the model's densest usual ratio, whichever is more; tokens that nobody could
see count by elapsed time at the model's upper speed; input that the provider has not stated counts by bytes,
in the dearest class that the request allows. And it is never above the hold, because it never leaves the
request's bounds.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import product
from math import ceil
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen
from msgspec import Struct
from msgspec.structs import replace

from accounting.records import Ending, Progress
from accounting.spending import EMPTY_FREE
from pricing.money import Pico, marked_up
from pricing.price import Bounds, Price
from pricing.usage import BUCKETS, NO_USAGE, Estimated, Meter, Reported, Source, Usage, total


class Report(StrEnum):
    """What the provider had said about usage when the answer ended."""

    FINAL = "final"
    PARTIAL = "partial"
    NONE = "none"


class Rule(StrEnum):
    """What a bill is made from."""

    REPORT = "report"
    """The provider's last word."""
    SEEN = "seen"
    """Input as stated or estimated, and the output that was seen: there was no other."""
    ESTIMATE = "estimate"
    """As `SEEN`, and what may have been generated out of sight, by elapsed time."""
    PROGRESS = "progress"
    """The last progress that was written down; nothing where none was."""
    NOTHING = "nothing"


@frozen
class Row:
    """One line of the table; a `None` fits everything.

    Attributes:
        endings: how the answer ended.
        charge: what the customer pays by.
        cost: what the operator's cost is reckoned by.
        report: what the provider had said.
        relayed: whether bytes of the answer were handed to the client.
        gone: whether the client had left (a muted answer).
        stops: whether hanging up stops the provider's bill.
        visible: whether every billed token could be seen.
    """

    endings: frozenset[Ending]
    charge: Rule
    cost: Rule
    report: Report | None = None
    relayed: bool | None = None
    gone: bool | None = None
    stops: bool | None = None
    visible: bool | None = None


_ALL: Final = frozenset(Ending)
_E: Final = Ending

TABLE: Final = (
    # nothing left for the provider
    Row(frozenset({_E.NEVER_SENT}), Rule.NOTHING, Rule.NOTHING),
    # a process that died knows only what it wrote down
    Row(frozenset({_E.KILLED}), Rule.PROGRESS, Rule.PROGRESS),
    # refused before it generated: free for everybody, unless the provider says otherwise
    Row(frozenset({_E.REFUSED}), Rule.NOTHING, Rule.REPORT, report=Report.FINAL, relayed=False),
    Row(frozenset({_E.REFUSED}), Rule.NOTHING, Rule.NOTHING, relayed=False),
    # failed before anything was relayed, by the provider's fault or ours: the caller got our own 50x and pays
    # nothing; the provider may bill, so the operator's cost is reckoned
    *(
        Row(frozenset(endings), Rule.NOTHING, cost, report=report, relayed=False, gone=gone)
        for endings, gone in (
            ({_E.UNREACHED, _E.BROKEN, _E.SHUTDOWN, _E.INTERNAL}, None),
            # a client that left and so let a muted answer run into its deadline is charged, below
            ({_E.TIMED_OUT, _E.STALLED}, False),
        )
        for report, cost in ((Report.FINAL, Rule.REPORT), (None, Rule.ESTIMATE))
    ),
    # the provider's last word, however the rest went
    Row(_ALL, Rule.REPORT, Rule.REPORT, report=Report.FINAL),
    # we closed the connection for the client's sake, that stopped the bill, and nothing was hidden
    Row(frozenset({_E.HUNG_UP, _E.EXHAUSTED}), Rule.SEEN, Rule.SEEN, stops=True, visible=True),
    # everything else has no last word
    Row(_ALL, Rule.ESTIMATE, Rule.ESTIMATE),
)
"""The first row that fits holds."""


@frozen
class Ruling:
    """What the customer's charge and the operator's cost are made from."""

    charge: Rule
    cost: Rule


def rule(
    ending: Ending, report: Report, *, relayed: bool, stops_billing: str, visible: bool, gone: bool = False
) -> Ruling:
    """Look an ending up in the table. `stops_billing` is `yes`, `no` or `unknown`; unknown counts as no."""
    stops = stops_billing == "yes"
    for row in TABLE:
        if (
            ending in row.endings
            and row.report in (None, report)
            and row.relayed in (None, relayed)
            and row.gone in (None, gone)
            and row.stops in (None, stops)
            and row.visible in (None, visible)
        ):
            return Ruling(row.charge, row.cost)
    raise AssertionError("the table's last row fits everything")  # pragma: no cover


_CLOSED_BY_US: Final = frozenset(
    {_E.TIMED_OUT, _E.STALLED, _E.HUNG_UP, _E.EXHAUSTED, _E.SHUTDOWN, _E.INTERNAL}
)
"""The provider might have gone on. Where hanging up does not stop its bill, it may have."""

AT_HOLD: Final = "at_hold"
"""The flag on a record whose estimate came to more than was held, and was cut down to that."""

PRODUCED: Final = (
    "output",
    "audio_output",
    "image_output",
    "web_searches",
    "seconds",
    "characters",
    "images",
)
"""Buckets of what a provider made or did for the caller, apart from reading the request."""


class Terms(Struct, frozen=True, gc=False):
    """What an attempt is made under; pinned when it begins. A struct, since one is made for each attempt.

    Attributes:
        model: canonical id. provider, account: the operator's names. dialect: the provider's.
        stops_billing: `yes`, `no` or `unknown`: whether hanging up ends the provider's bill.
        visible: every billed token can be seen going by.
        bounds: the box that any usage must lie in; the hold is at least its price.
        text_bytes: UTF-8 bytes of what becomes input text.
        dense_bytes_per_token: fewest bytes of content that a token usually carries.
        tokens_per_second_max: the fastest that the model is known to write.
        slice_tokens: where the hold rolls, output tokens that it begins with; 0: it is the full one.
        states_input: the provider states the input for good at the start of a stream.
        choices: answers that are written side by side, each as fast as that.
        holds_back: content may be kept back while it is written (Anthropic: tool input, until a value is complete).
    """

    model: str
    provider: str
    account: str
    dialect: str
    stream: bool
    price: Price
    stops_billing: str
    visible: bool
    bounds: Bounds
    text_bytes: int
    dense_bytes_per_token: int
    tokens_per_second_max: int
    slice_tokens: int = 0
    states_input: bool = False
    choices: int = 1
    holds_back: bool = False


class Bill(Struct, frozen=True, gc=False):
    """What one attempt costs, before the hold caps it. A struct, as `Terms`.

    Attributes:
        legs: what was priced; empty where nothing is known or owed.
        source: where that comes from.
        price: what the customer owes.
        cost: what the operator owes the provider, at list price.
        flags: what was odd.
    """

    legs: tuple[Usage, ...]
    source: Source
    price: Pico
    cost: Pico
    flags: tuple[str, ...] = ()

    @property
    def usage(self) -> Usage:
        """The sum of all legs, for show."""
        return total(self.legs) if self.legs else NO_USAGE


def bill(
    terms: Terms,
    meter: Meter,
    ending: Ending,
    *,
    elapsed_seconds: float,
    relayed: bool,
    gone: bool = False,
    quiet_seconds: float = 0.0,
) -> Bill:
    """Make out the bill of an attempt that ended while we were there to see it.

    Args:
        terms: what it was made under.
        meter: what was reported and seen.
        ending: how it ended.
        elapsed_seconds: since it was sent.
        relayed: bytes of it were handed to the client.
        gone: the client has left.
        quiet_seconds: since content was last seen.
    """
    reported = meter.reported
    if ending is Ending.COMPLETE and reported is not None and reported.final:
        return _bill_of(terms, reported, ending)  # nearly always; `rule` says the same, for both bills
    ruling = rule(
        ending,
        _report(meter),
        relayed=relayed,
        stops_billing=terms.stops_billing,
        visible=terms.visible,
        gone=gone,
    )
    known: Reported | Estimated | None = None
    if ruling.cost is Rule.REPORT:
        known = reported
    elif ruling.cost is not Rule.NOTHING:
        hidden = ruling.cost is Rule.ESTIMATE and _may_hide(terms, ending)
        if ruling.cost is Rule.SEEN and terms.holds_back and meter.content_frames:
            hidden, elapsed_seconds = True, quiet_seconds  # in which a long value may have been written
        known = estimate(terms, meter, elapsed_seconds=elapsed_seconds, hidden=hidden, because=ending.value)
    if known is None:
        return Bill((), Source.NONE, 0, 0)
    return _bill_of(terms, known, ending, free=ruling.charge is Rule.NOTHING)


def is_empty(terms: Terms, meter: Meter, ending: Ending) -> bool:
    """Whether an answer is an empty completion: whole, and by the provider's last word nothing was written.

    An explicit zero is a report; a missing one is none. Nobody may have seen any content either, and whoever asked
    for no output (to fill a cache, say) got what was asked for.
    """
    reported = meter.reported
    return (
        ending is Ending.COMPLETE
        and reported is not None
        and reported.final
        and terms.bounds.output > 0
        and not (meter.content_frames or meter.content_bytes)
        and not any(getattr(leg, name) for leg in reported.legs for name in PRODUCED)
    )


def waived(made: Bill) -> Bill:
    """The bill of an empty completion that is free: the customer owes nothing, and the operator what it did."""
    return replace(made, price=0, flags=(*made.flags, EMPTY_FREE))


def within(made: Bill, held: Pico) -> Bill:
    """An estimate is never above the hold: by what it exceeds that, it is our guess and no surprise of a provider's."""
    if made.source is not Source.ESTIMATED or made.price <= held:
        return made
    return replace(made, price=held, flags=(*made.flags, AT_HOLD))


def estimate(
    terms: Terms, meter: Meter, *, elapsed_seconds: float, hidden: bool, because: str
) -> Reported | Estimated:
    """Work out what an answer used whose final report is missing.

    What a partial report states about input is kept (Anthropic says it at the start of a stream); its output
    only rises, to what was seen and, where tokens may be hidden, what can have been written in the time. A
    partial report that says at least that much is itself the result.
    """
    written = max(meter.content_frames, -(-meter.content_bytes // terms.dense_bytes_per_token))
    if hidden:
        written += ceil(max(elapsed_seconds, 0.0) * terms.tokens_per_second_max * terms.choices)
    written = min(written, terms.bounds.output)
    stated = meter.reported
    if stated is not None:
        already = sum(leg.output + leg.audio_output + leg.image_output for leg in stated.legs)
        # no provider reads nothing: a report without input is one that has not come to its input yet
        if any(leg.context for leg in stated.legs):
            if written <= already:
                return stated
            *before, last = stated.legs
            return Estimated((*before, replace(last, output=last.output + written - already)), because)
        written = max(written, already)
    return Estimated((_dearest(terms, _input_upper(terms), written),), because)


def recovered(progress: Progress | None) -> Bill:
    """The bill of an attempt that a dead process left open."""
    if progress is None:
        return Bill((), Source.RECOVERED, 0, 0, ("no_progress",))
    return Bill(
        (progress.usage,),
        Source.RECOVERED,
        progress.cost,
        progress.list_cost,
        (f"progress_{progress.source.value}",),
    )


def _bill_of(terms: Terms, known: Reported | Estimated, ending: Ending, *, free: bool = False) -> Bill:
    """Price what is known to have been used. `free`: for the customer."""
    price = terms.price
    legs = with_call(price, known.legs)
    cost = price.list_cost(legs)
    flags = _flags(terms, known, legs, ending)
    return Bill(legs, known.source, 0 if free else marked_up(cost, price.markup_ppm), cost, flags)


def _report(meter: Meter) -> Report:
    if meter.reported is None:
        return Report.NONE
    return Report.FINAL if meter.reported.final else Report.PARTIAL


def _may_hide(terms: Terms, ending: Ending) -> bool:
    """Whether tokens can have gone past the meter: hidden reasoning, or a body that never came."""
    return not terms.visible or (not terms.stream and ending is not Ending.COMPLETE)


def _input_upper(terms: Terms) -> int:
    """Most tokens of input: text at the densest usual ratio, and what the bound adds for what is not text."""
    text = -(-terms.text_bytes // terms.dense_bytes_per_token)
    return min(terms.bounds.input, text + max(0, terms.bounds.input - terms.text_bytes))


def _dearest(terms: Terms, read: int, written: int) -> Usage:
    """At most that many tokens in the dearest classes that the body or the vendor's habits allow, as reported once.

    Where a longer context is cheaper, the dearest is as many as the dearer tier still holds for.
    """
    price = terms.price
    dearest = _in_dearest_classes(terms, read, written)
    for tier in price.tiers[1:]:
        if tier.above < read:
            fewer = _in_dearest_classes(terms, tier.above, written)
            dearest = max(dearest, fewer, key=lambda usage: price.list_cost((usage,)))
    return dearest


def _in_dearest_classes(terms: Terms, read: int, written: int) -> Usage:
    each = terms.price.tier_at(read).each
    into, out = (max(places, key=each.__getitem__) for places in terms.price.classes(terms.bounds))
    counts = {BUCKETS[into]: read, BUCKETS[out]: written, "web_searches": terms.bounds.web_searches}
    return Usage(**counts)


def with_call(price: Price, legs: tuple[Usage, ...]) -> tuple[Usage, ...]:
    """Count the call itself, where it has a price and the report does not count it."""
    if not legs or not price.tiers[0].rates.requests:
        return legs
    for leg in legs:
        if leg.requests:
            return legs
    return (replace(legs[0], requests=1), *legs[1:])


def _flags(
    terms: Terms, known: Reported | Estimated, legs: tuple[Usage, ...], ending: Ending
) -> tuple[str, ...]:
    unpriced = terms.price.unpriced(legs)
    if not unpriced and isinstance(known, Reported) and known.final and not known.flags:
        return ()  # nearly always
    flags = [f"unpriced:{name}" for name in unpriced]
    if isinstance(known, Reported):
        flags += known.flags
    elif ending is Ending.COMPLETE:
        flags.append("no_report")
    if ending in _CLOSED_BY_US and terms.stops_billing != "yes" and not _is_final(known):
        flags.append("bills_on")
    return tuple(sorted(flags)) if len(flags) > 1 else tuple(flags)


def _is_final(known: Reported | Estimated) -> bool:
    return isinstance(known, Reported) and known.final


# -- the table, for people -------------------------------------------------------------------------

COLUMNS: Final = (
    "how it ended",
    "the provider's report",
    "bytes relayed",
    "the client",
    "hanging up stops the bill",
    "the customer pays",
    "the operator's cost",
)

_ENDINGS: Final[Mapping[Ending, str]] = MappingProxyType(
    {
        _E.COMPLETE: "complete",
        _E.NEVER_SENT: "never sent",
        _E.REFUSED: "refused by the provider",
        _E.UNREACHED: "no answer came",
        _E.TIMED_OUT: "no content within our deadline",
        _E.BROKEN: "cut off or failed at the provider",
        _E.STALLED: "not finished within our deadline",
        _E.HUNG_UP: "the client left, and we closed the connection",
        _E.EXHAUSTED: "the credit was used up, and we closed the connection",
        _E.SHUTDOWN: "we were told to stop",
        _E.INTERNAL: "our own fault",
        _E.KILLED: "the process died",
    }
)

_RULES: Final[Mapping[Rule, str]] = MappingProxyType(
    {
        Rule.REPORT: "the report",
        Rule.SEEN: "what was seen",
        Rule.ESTIMATE: "the estimate",
        Rule.PROGRESS: "the last progress",
        Rule.NOTHING: "nothing",
    }
)

_QUESTIONS: Final[tuple[Mapping[Any, str], ...]] = (
    MappingProxyType({Report.FINAL: "final", Report.PARTIAL: "partial", Report.NONE: "none"}),
    MappingProxyType({True: "yes", False: "no"}),
    MappingProxyType({False: "is there", True: "has left"}),
    MappingProxyType(
        {
            ("yes", True): "yes, and all is visible",
            ("yes", False): "yes, but some is hidden",
            ("no", True): "no",
            ("no", False): "no, and some is hidden",
        }
    ),
)
"""What the table distinguishes: report, relayed, gone, and (stops billing, visible); unknown is as no."""

_Case = tuple[tuple[Any, ...], ...]
"""The values of each of the questions that a row is about."""


def table() -> tuple[tuple[str, ...], ...]:
    """The truth table as rows of words under `COLUMNS`; each case lies in exactly one of them."""
    alike: dict[tuple[Ruling, ...], list[Ending]] = {}
    everything = tuple(tuple(question) for question in _QUESTIONS)
    for ending in _ENDINGS:
        alike.setdefault(tuple(_rulings(ending, everything)), []).append(ending)
    return tuple(
        ("; ".join(_ENDINGS[ending] for ending in endings), *words)
        for endings in alike.values()
        for words in _rows(endings[0], everything)
    )


def _rulings(ending: Ending, case: _Case) -> list[Ruling]:
    return [
        rule(ending, report, relayed=relayed, stops_billing=stops, visible=visible, gone=gone)
        for report, relayed, gone, (stops, visible) in product(*case)
    ]


def _rows(ending: Ending, case: _Case) -> list[tuple[str, ...]]:
    """As few rows as asking one question after the other can make of a case."""
    rulings = _rulings(ending, case)
    if len(set(rulings)) == 1:
        words = [_said(question, values) for question, values in zip(_QUESTIONS, case, strict=True)]
        return [(*words, _RULES[rulings[0].charge], _RULES[rulings[0].cost])]
    best: list[tuple[str, ...]] = []
    for place, values in enumerate(case):
        answers: dict[tuple[Ruling, ...], tuple[Any, ...]] = {}
        for value in values:
            found = tuple(_rulings(ending, (*case[:place], (value,), *case[place + 1 :])))
            answers[found] = (*answers.get(found, ()), value)
        if len(answers) > 1:
            parts = [_rows(ending, (*case[:place], same, *case[place + 1 :])) for same in answers.values()]
            rows = [row for part in parts for row in part]
            best = min(best or rows, rows, key=len)
    return best


def _said(question: Mapping[Any, str], values: tuple[Any, ...]) -> str:
    """The answers in words: none where it does not matter."""
    if len(values) == len(question):
        return ""
    if len(values) > 1 and ("yes", True) in question:
        return "no, or not known, or some is hidden"
    return " or ".join(question[value] for value in values)
