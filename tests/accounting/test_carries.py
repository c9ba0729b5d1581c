from hypothesis import given
from hypothesis import strategies as st

from accounting.carries import Carried, Carries
from accounting.lines import Lines, encode
from tests.accounting.journal_fakes import (
    attempt,
    extension,
    grant,
    job,
    progress,
    settled,
    void,
    wallet,
    work,
)


def noted(*records):
    carries = Carries()
    for record in records:
        carries.note(record)
    return carries


def test_what_is_open_is_carried_with_the_last_that_was_written_about_it():
    carries = noted(
        wallet(), grant(), attempt(1), extension(1, 5), progress(1, 3), extension(1, 4), progress(1, 4)
    )
    assert list(carries) == [Carried(attempt(1), progress(1, 4), 4)]


def test_a_job_is_carried_until_it_is_settled():
    carries = noted(work(1), job(1), attempt(2), settled(2))
    assert list(carries) == [Carried(work(1), None, None, job(1))]
    carries.note(settled(1))
    assert len(carries) == 0


def test_what_is_over_or_was_never_open_is_not_carried():
    assert list(noted(attempt(1), void(1), attempt(2), settled(2), progress(2), extension(3), job(4))) == []


def test_two_attempts_of_one_request_are_two():
    carries = noted(attempt(1), settled(1), attempt(1, 2), progress(1, 9, number=2))
    assert list(carries) == [Carried(attempt(1, 2), progress(1, 9, number=2))]


def test_a_copy_goes_on_by_itself():
    carries = noted(attempt(1))
    other = carries.copy()
    other.note(settled(1))
    assert (len(carries), len(other)) == (1, 0)


@given(
    st.builds(
        Carried,
        st.sampled_from([attempt(1), work(1)]),
        st.sampled_from([None, progress(1)]),
        st.none() | st.integers(0, 2**63),
        st.sampled_from([None, job(1)]),
    )
)
def test_what_is_carried_comes_back_from_its_line(carried):
    (line,) = Lines(encode(carried.line(7), 1, 0)[0])
    assert Carried.of(line.record()) == carried
