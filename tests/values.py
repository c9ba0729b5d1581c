"""A value with some of its fields changed, whichever of the two kinds of class that we have it is of."""

import attrs
import msgspec


def evolve(value, **changes):
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    return attrs.evolve(value, **changes)
