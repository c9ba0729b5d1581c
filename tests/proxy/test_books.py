"""Opening the books: the ids that are made for what is written in them."""

import string

from proxy.books import IDS_DRAWN, Ids


def test_an_id_is_its_prefix_its_time_and_eighty_random_bits():
    one = Ids()("req")
    prefix, _, digits = one.partition("_")
    assert prefix == "req"
    assert len(digits) == 12 + 20
    assert set(digits) <= set(string.hexdigits.lower())


def test_ids_are_alike_in_no_random_part_also_beyond_what_is_drawn_at_once():
    makers = Ids(), Ids()
    made = [maker("req") for _ in range(IDS_DRAWN + 10) for maker in makers]
    assert len({one[-20:] for one in made}) == len(made)


def test_ids_sort_by_age():
    make = Ids()
    made = [make("req")[:-20] for _ in range(1000)]
    assert made == sorted(made)


def test_what_is_to_come_is_not_shown():
    make = Ids()
    make("req")
    assert not any(part in repr(make) for part in make._drawn)
