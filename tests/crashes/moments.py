"""When to kill: moments of a gateway's life that can be seen from outside, by its files and its lock."""

import os
from contextlib import suppress
from enum import StrEnum

import trio

LOOK_SECONDS = 0.001
"""Between two looks at a directory: most of what is looked for takes longer."""

PATIENCE_SECONDS = 6.0
"""A moment that does not come is not waited for: then that is the moment."""


class Moment(StrEnum):
    """What is under way when the kill comes."""

    LOAD = "under load"
    ROTATION = "rotation"
    SPARE = "a spare being made"
    SEAL = "sealing"
    ARCHIVE = "archiving"
    STORE = "loading the store"
    READY = "ready"
    RECOVERY = "recovery"
    BIRTH = "any time after the start"

    @property
    def early(self):
        """The process may never come to say that it is ready."""
        return self in (Moment.RECOVERY, Moment.BIRTH)


def names(state):
    """Everything in a state directory, as `directory/name`."""
    found = set()
    for folder in ("", "journal", "archive"):
        with suppress(FileNotFoundError):
            found |= {f"{folder}/{name}" for name in os.listdir(state / folder)}  # noqa: PTH208 - a thousand a second
    return found


SHOWS = {
    Moment.ROTATION: lambda name: name.startswith("journal/") and name.endswith(".open"),
    Moment.SPARE: lambda name: name.startswith("journal/spare"),
    Moment.SEAL: lambda name: name.startswith("journal/") and name.endswith(".ndjson"),
    Moment.ARCHIVE: lambda name: name.startswith("archive/"),
    Moment.STORE: lambda name: name.startswith("/books.duckdb."),
}
"""By which new name a moment shows."""


async def reach(moment, state, process, rng):
    """Return when it is time; says whether the moment was seen to come."""
    match moment:
        case Moment.LOAD:
            await trio.sleep(0.2 + 0.8 * rng.random())
            return True
        case Moment.READY:
            await trio.sleep(0.02 * rng.random())
            return True
        case Moment.BIRTH:
            await trio.sleep(1.5 * rng.random())
            return True
        case Moment.RECOVERY:
            came = await _sees(lambda: _has_open(process.pid, state / "lock") or process.poll() is not None)
            await trio.sleep(0.15 * rng.random())
            return came
        case _:
            shows, before = SHOWS[moment], names(state)
            # what stands there now may be on its way out, and come again under the same name
            came = await _sees(lambda: any(shows(name) for name in _new(before, names(state))))
            await trio.sleep(rng.choice((0, 0, 0.001, 0.005, 0.02)))
            return came


def _new(before, now):
    before &= now
    return now - before


async def _sees(is_so):
    with trio.move_on_after(PATIENCE_SECONDS):
        while not is_so():
            await trio.sleep(LOOK_SECONDS)
        return True
    return False


def _has_open(pid, path):
    """Whether a process has a file open, where the kernel tells."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{folder}/{one}") == str(path) for one in os.listdir(folder))  # noqa: PTH115, PTH208
    except OSError:
        return False
