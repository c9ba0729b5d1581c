import json

import pytest
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.config import RequestLimits
from proxy.dialects.guard import guard
from proxy.errors import Rejected

LIMITS = RequestLimits()

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(max_size=12)
    | st.text('\\"[]{},', max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\[]', max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def depth_of(value):
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def items_of(value):
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return max(len(value), 1) + sum(map(items_of, inner))
    return 0


@settings(max_examples=150, deadline=None)
@given(value=st.dictionaries(st.text(max_size=3), values, max_size=4), ascii_only=st.booleans())
@example(value={"": [[]]}, ascii_only=True)
def test_the_guard_counts_what_a_decoder_would_find(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    depth, items = depth_of(value), items_of(value)
    try:
        guard(body, evolve(LIMITS, depth_max=max(depth, 8), items_max=max(items, 1)))
    except Rejected as rejected:
        raise AssertionError(f"refused a body of depth {depth} and {items} items") from rejected
    if items > 1:
        with pytest.raises(Rejected):
            guard(body, evolve(LIMITS, items_max=items - 1))
    if depth > 8:
        with pytest.raises(Rejected):
            guard(body, evolve(LIMITS, depth_max=depth - 1))
