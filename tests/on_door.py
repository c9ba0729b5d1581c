"""Has everything that names no door use a given one: `python -m tests.on_door hypercorn serve …` is `farebox serve …`.

The suite runs on either door (`pytest --door hypercorn`). A test that starts a gateway says nothing about doors, and
may have a config file of its own; so it is the default that changes, in this process and in those that it starts.
"""

import sys

from attrs import fields

from proxy.config import Server


def use(door):
    """Make a door the default."""
    names = [one.name for one in fields(Server)]
    defaults = dict(zip(names, Server.__init__.__defaults__, strict=True))
    Server.__init__.__defaults__ = tuple({**defaults, "door": door}.values())
    assert Server().door == door


if __name__ == "__main__":
    use(sys.argv.pop(1))
    from proxy.cli import main

    main()
