import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.lines import Lines, encode
from accounting.records import LETTERS, Leg, Void, Wallet
from tests.accounting.journal_fakes import calls, grant, settled, void, wallet


def text(*records):
    crc, lines = 0, []
    for seq, record in enumerate(records, 1):
        line, crc = encode(record, seq, crc)
        lines.append(line)
    return b"".join(lines)


def test_a_line_is_json_with_crc_seq_and_kind_first():
    line, crc = encode(wallet(), 7, 0)
    assert line.startswith(b'{"c":"%08x","s":7,"t":"W",' % crc)
    assert line.endswith(b"}\n")
    assert msgspec.json.decode(line)["name"] == "Ada"


def test_a_kind_of_line_has_a_letter_for_every_record():
    assert len(set(LETTERS.values())) == len(LETTERS)


def test_lines_come_back_with_their_place_and_their_fields():
    written = [wallet(), grant(), *calls(2)]
    lines = list(Lines(text(*written)))
    assert [line.record() for line in lines] == written
    assert [line.seq for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(text(*written)[line.offset :].startswith(line.text) for line in lines)


@given(text_=st.text(st.characters(exclude_categories=["Cs"])), amount=st.integers(-(2**127), 2**127))
@settings(max_examples=60)
def test_any_text_and_any_amount_come_back_exactly(text_, amount):
    first, second = (
        line.record() for line in Lines(text(Wallet(text_, text_, text_, 1), settled(1, amount)))
    )
    assert first == Wallet(text_, text_, text_, 1)
    assert second.charged == amount
    assert second.legs == ((Leg("g1", amount),) if amount else ())


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_ends_the_intact_part_before_its_line(bit):
    data = text(wallet(), void(1), void(2))
    second = data.index(b"\n") + 1
    for at in range(second, data.index(b"\n", second) + 1):
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        lines = Lines(bytes(flipped))
        assert len(list(lines)) == 1
        assert lines.end == second
        assert lines.torn


def test_a_line_out_of_its_place_is_not_intact():
    first, second = text(void(1), void(2)).splitlines(keepends=True)
    assert list(Lines(second + first)) == []


def test_a_line_that_is_intact_and_unknown_says_so_when_it_is_decoded():
    (line,) = Lines(text(Void("r1", 1, 5)))
    with pytest.raises(KeyError):
        line._replace(letter="Q").record()
