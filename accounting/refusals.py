"""What the books may say no to: one exception for each reason, with what a caller can be told about it."""

from typing import Literal

from accounting.records import Grant
from pricing.money import Pico

Limit = Literal["wallet", "key_cap", "budget", "max_cost", "in_flight"]
"""Which limit stands in the way; `in_flight`: none, if only the open holds were done."""


class Refusal(Exception):
    """The books say no; nothing was changed."""


class Insufficient(Refusal):
    """A hold does not fit into what is available.

    Args:
        limit: what stands in the way.
        wallet: whose.
        amount: by how much the hold was to grow.
        available: what there is for it under all limits together, in picos.
    """

    def __init__(self, limit: Limit, wallet: str, amount: Pico, available: Pico) -> None:
        super().__init__(f"wallet {wallet}: {amount} picos do not fit into {available} available ({limit})")
        self.limit = limit
        self.wallet = wallet
        self.amount = amount
        self.available = available
        self.shortfall = amount - available


class TooManyTasks(Refusal):
    """The wallet has as many tasks with a budget alive as it may have."""

    def __init__(self, wallet: str, most: int) -> None:
        super().__init__(f"Wallet {wallet!r} has {most} tasks with a budget alive, which is the most.")
        self.wallet = wallet


class UnknownTask(Refusal):
    """A budget was named without a maximum, and nothing is known of it."""

    def __init__(self, budget: str) -> None:
        super().__init__(f"There is no budget {budget!r} yet: its first request sets the maximum.")
        self.budget = budget


class UnknownWallet(Refusal):
    """No wallet has this id."""

    def __init__(self, wallet: str) -> None:
        super().__init__(f"There is no wallet {wallet!r}.")
        self.wallet = wallet


class UnknownKey(Refusal):
    """No key has this id."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no key {key!r}.")
        self.key = key


class WalletFrozen(Refusal):
    """The wallet takes no new holds; open ones settle."""

    def __init__(self, wallet: str) -> None:
        super().__init__(f"Wallet {wallet!r} is frozen.")
        self.wallet = wallet


class KeyRevoked(Refusal):
    """The key was revoked while its request was on the way to its hold, or held already."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Key {key!r} is revoked.")
        self.key = key


class DuplicateGrant(Refusal):
    """This payment has been credited before; `existing` is the grant that it made."""

    def __init__(self, existing: Grant) -> None:
        super().__init__(f"{existing.source_key!r} was credited before, as grant {existing.grant!r}.")
        self.existing = existing


class Contradiction(Exception):
    """Records that cannot follow on what the ledger knows: the journal is incomplete, or we are wrong."""
