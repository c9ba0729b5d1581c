"""What requests have set aside, and the limits that a hold must fit into when it is taken and when it grows.

Four rooms, all of one kind: the wallet, the cap of the key in its window, the budget of the task, and what the
request itself may cost. Checked and taken in one synchronous step; nothing here knows records or the journal.
"""

from collections.abc import Mapping
from operator import itemgetter

from attrs import define, field
from msgspec import Struct

from accounting.purse import Purse
from accounting.records import Key, Spender
from accounting.refusals import Insufficient, KeyRevoked, Limit, UnknownWallet, WalletFrozen
from accounting.spending import EMPTY_FREE, Budget, Spending, Tally, Task
from pricing.money import Pico


class Claim(Struct, frozen=True, gc=False):
    """For whom, and within which bounds, something is set aside. A struct, since one is made for each request.

    Attributes:
        spender: wallet and key.
        at_ms: wall clock; decides the window of the key's cap.
        budget: the task that it belongs to, if any.
        max_cost: most that the request may cost, if it says so.
    """

    spender: Spender
    at_ms: int = 0
    budget: Budget | None = None
    max_cost: Pico | None = None


class Room(Struct, frozen=True, gc=False):
    """What one limit leaves: now, and once all open holds were done. A struct, as `Claim`."""

    limit: Limit
    available: Pico
    unheld: Pico


class OpenHold(Struct, eq=False, gc=False):
    """What is set aside for one request. A struct, as `Claim`.

    Attributes:
        claim: for whom.
        purse: of the wallet.
        tallies: of the key, of its day, and of the task: where it is held and will be spent.
        task: that it belongs to.
        amount: how much.
        stays: it came with an attempt that recovery found, or was left with a job, and goes with that; nobody
            will give it back.
    """

    claim: Claim
    purse: Purse
    tallies: tuple[Tally, ...]
    task: Task | None
    amount: Pico = 0
    stays: bool = False

    def resize(self, amount: Pico) -> None:
        """Set aside so much instead."""
        change = amount - self.amount
        self.amount = amount
        self.purse.held += change
        for tally in self.tallies:
            tally.held += change

    def spent(self, amount: Pico, flags: tuple[str, ...]) -> None:
        """So much of it was charged."""
        for tally in self.tallies:
            tally.spent += amount
        if EMPTY_FREE in flags:
            for tally in self.tallies:
                tally.empties += 1

    def recorded(self, budget_max: Pico | None) -> None:
        """A record names it: from now on its task is remembered, and has at most this maximum."""
        if self.task is not None:
            self.task.recorded = True
            if budget_max is not None:
                self.task.max = min(self.task.max, budget_max)


@define(eq=False)
class Claims:
    """All open holds, over the purses, keys and tallies that the ledger keeps."""

    _purses: Mapping[str, Purse]
    _keys: Mapping[str, Key]
    _spending: Spending
    _holds: dict[str, OpenHold] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._holds)

    def of(self, request: str) -> OpenHold | None:
        """What is set aside for a request."""
        return self._holds.get(request)

    def rooms(self, claim: Claim) -> list[Room]:
        """Every limit that a hold has to fit into, with what it leaves. Raises `UnknownWallet`."""
        wallet, budget = claim.spender.wallet, claim.budget
        purse = self._purses.get(wallet) or self._purse(wallet)
        rooms = [Room("wallet", purse.balance - purse.held, purse.balance)]
        key = self._keys.get(claim.spender.key)
        if key is not None and key.cap is not None:
            spent, held = self._spending.within_cap(key, claim.at_ms)
            rooms.append(Room("key_cap", key.cap - spent - held, key.cap - spent))
        if budget is not None:
            task = self._spending.task(wallet, budget.id, claim.at_ms)
            if task is not None:
                most = task.max if budget.max is None else min(task.max, budget.max)
                spent = task.tally.spent
                rooms.append(Room("budget", most - spent - task.tally.held, most - spent))
            elif budget.max is not None:
                rooms.append(Room("budget", budget.max, budget.max))
        if claim.max_cost is not None:
            rooms.append(Room("max_cost", claim.max_cost, claim.max_cost))
        return rooms

    def available_to(self, claim: Claim) -> Pico:
        """What a new hold may take, under all limits together. Raises `UnknownWallet`."""
        wallet = claim.spender.wallet
        if _by_wallet_alone(claim, self._keys.get(claim.spender.key)):
            purse = self._purses.get(wallet) or self._purse(wallet)
            available = purse.balance - purse.held
        else:
            available = min([room.available for room in self.rooms(claim)])
        return max(0, available)

    def take(self, request: str, claim: Claim, amount: Pico) -> None:
        """Set an amount aside for a request.

        Raises:
            UnknownWallet, WalletFrozen, KeyRevoked, UnknownTask, TooManyTasks, Insufficient: nothing was taken.
            ValueError: a negative amount, or a second hold for one request.
        """
        key = self._admit(claim.spender)
        if amount < 0 or request in self._holds:
            raise ValueError(f"request {request}: cannot hold {amount} (again)")
        if claim.budget is not None:
            self._spending.check_task(claim.spender.wallet, claim.budget, claim.at_ms)
        self._fit(claim, key, amount)
        hold = self.open(request, claim, amount)
        if hold.task is not None and claim.budget is not None and claim.budget.max is not None:
            # at once, and not when its record comes: who asks next must find no more room than this one left
            hold.task.max = min(hold.task.max, claim.budget.max)

    def open(self, request: str, claim: Claim, amount: Pico) -> OpenHold:
        """Set an amount aside that was found fitting before: now, or by the process that wrote its record."""
        purse, task = self._purses[claim.spender.wallet], None
        tallies = self._spending.tallies(claim.spender.key, claim.at_ms)
        if claim.budget is not None:
            task = self._spending.begin_task(claim.spender.wallet, claim.budget, claim.at_ms)
            tallies = (*tallies, task.tally)
        hold = self._holds[request] = OpenHold(claim, purse, tallies, task)
        hold.resize(amount)
        return hold

    def check_extension(self, request: str, amount: Pico) -> None:
        """Refuse to set so much aside in all for a request that holds less; shrinking is always allowed.

        Raises:
            WalletFrozen, KeyRevoked: since the request began.
            Insufficient: with by how much it may grow.
        """
        hold = self._holds[request]
        if amount > hold.amount:
            key = self._admit(hold.claim.spender)
            self._fit(hold.claim, key, amount - hold.amount, already=hold.amount)

    def give_back(self, request: str) -> None:
        """Close a request's hold; what was charged has left the balance already. Nothing if there is none."""
        hold = self._holds.pop(request, None)
        if hold is not None:
            hold.resize(0)
            if hold.task is not None and hold.claim.budget is not None:
                self._spending.end_hold(hold.claim.spender.wallet, hold.claim.budget.id, hold.task)

    def _purse(self, wallet: str) -> Purse:
        try:
            return self._purses[wallet]
        except KeyError:
            raise UnknownWallet(wallet) from None

    def _admit(self, spender: Spender) -> Key | None:
        """Refuse what is closed; gives the key, if it is known here."""
        if (self._purses.get(spender.wallet) or self._purse(spender.wallet)).wallet.frozen:
            raise WalletFrozen(spender.wallet)
        key = self._keys.get(spender.key)
        if key is not None and key.revoked:  # keys are checked at the door; here we catch one revoked since
            raise KeyRevoked(spender.key)
        return key

    def _fit(self, claim: Claim, key: Key | None, amount: Pico, *, already: Pico = 0) -> None:
        """Refuse what does not fit. `already`: what this request holds, and no other request can give back."""
        if _by_wallet_alone(claim, key):
            purse = self._purses[claim.spender.wallet]
            if amount <= purse.balance - purse.held:
                return  # nearly every hold
        full: list[tuple[Pico, Room]] = []
        for room in self.rooms(claim):
            # a limit that was lowered meanwhile may be below what is held; what takes nothing fits all the same
            free = max(room.available - _own(room, already), 0)
            if amount > free:
                full.append((free, room))
        if full:
            for_good = [one for one in full if amount > one[1].unheld - already]
            limit = min(for_good, key=itemgetter(0))[1].limit if for_good else "in_flight"
            raise Insufficient(limit, claim.spender.wallet, amount, min(free for free, _ in full))


def _by_wallet_alone(claim: Claim, key: Key | None) -> bool:
    """Whether nothing but the wallet bounds a claim, as nearly always: its room is then the only one."""
    return claim.budget is None and claim.max_cost is None and (key is None or key.cap is None)


def _own(room: Room, already: Pico) -> Pico:
    """What a request itself has taken of a room that does not count what is held: its own maximum."""
    return already if room.limit == "max_cost" else 0
