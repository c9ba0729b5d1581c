"""Upstream accounts: which are healthy, which rest until when and why, which is next; pure, time is given.

An account rests as a whole (its credential was refused) or for one model (a rate limit). Two kinds of rest:

- *hard*: the provider said so (429, 401, 402, 403). Asking again before it is over is of no use.
- *soft*: it failed (5xx, no connection). Others go first, but where every account rests softly the first of
  them is tried all the same: one bad minute of a lone provider must not become our own outage.
"""

from collections.abc import Iterable

from attrs import define, field, frozen

from proxy.types import Offer


@frozen
class Rest:
    """An account is left alone for a while.

    Attributes:
        model: the model's name at the provider, or `None` for the whole account.
        since, until: monotonic seconds.
        because: in a few words, for the operator; no provider's text.
        hard: whether it is not even a last resort.
    """

    provider: str
    account: str
    model: str | None
    since: float
    until: float
    because: str
    hard: bool


_Key = tuple[str, str, str | None]


@define(eq=False)
class Pool:
    """Who rests.

    Attributes:
        rests_max: at most so many are remembered; model names may be a caller's own (sandbox parameters), so
            without a bound they would grow for ever. The one that ends first is forgotten first.
    """

    rests_max: int = 4096
    _rests: dict[_Key, Rest] = field(factory=dict)

    def next(self, offers: Iterable[Offer], now: float) -> Offer | None:
        """The offer to try next: the first healthy one, else the first that rests softly, else none."""
        last_resort = None
        for offer in offers:
            rests = self._rests and self._of(offer, now)  # where nobody rests, there is nothing to look up
            if not rests:
                return offer
            if last_resort is None and not any(rest.hard for rest in rests):
                last_resort = offer
        return last_resort

    def ready_at(self, offers: Iterable[Offer], now: float) -> float:
        """When the first of these accounts is healthy again; `now` if one is."""
        return min(
            (max((rest.until for rest in self._of(offer, now)), default=now) for offer in offers), default=now
        )

    def rest(self, rest: Rest) -> Rest:
        """Let an account rest; gives the rest that holds: the older one where that is harder or longer."""
        key = (rest.provider, rest.account, rest.model)
        old = self._rests.get(key)
        if old is not None and old.until > rest.since and (old.hard, old.until) > (rest.hard, rest.until):
            return old
        if old is None and len(self._rests) >= self.rests_max:
            self._forget(rest.since)
        self._rests[key] = rest
        return rest

    def succeeded(self, offer: Offer, began: float) -> None:
        """An attempt that began at `began` is being answered: what was said about the account before is over.

        A rest that is younger than the attempt stays: it says nothing about a limit reached meanwhile.
        """
        if not self._rests:
            return
        for key in _keys(offer):
            rest = self._rests.get(key)
            if rest is not None and rest.since <= began:
                del self._rests[key]

    def clear(self, provider: str, account: str) -> None:
        """Wake an account at once, on the operator's word."""
        for key in [key for key in self._rests if key[:2] == (provider, account)]:
            del self._rests[key]

    def resting(self, now: float) -> tuple[Rest, ...]:
        """Who rests, soonest to wake first."""
        return tuple(
            sorted((rest for rest in self._rests.values() if rest.until > now), key=lambda rest: rest.until)
        )

    def _of(self, offer: Offer, now: float) -> list[Rest]:
        found = (self._rests.get(key) for key in _keys(offer))
        return [rest for rest in found if rest is not None and rest.until > now]

    def _forget(self, now: float) -> None:
        for key in [key for key, rest in self._rests.items() if rest.until <= now]:
            del self._rests[key]
        if len(self._rests) >= self.rests_max:
            del self._rests[min(self._rests, key=lambda key: self._rests[key].until)]


def _keys(offer: Offer) -> tuple[_Key, _Key]:
    return (offer.provider, offer.account, None), (offer.provider, offer.account, offer.wire_name)
