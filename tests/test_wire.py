"""The body of an upload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtrack import wire
from torchtrack.journal.frame import TooLargeError

SECTIONS = st.lists(
    st.builds(
        wire.Section,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 1 << 60),
        st.binary(max_size=2000),
        st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3).map(tuple),
    ),
    max_size=4,
)


@given(SECTIONS, st.booleans())
def test_a_body_comes_out_as_it_went_in(sections: list[wire.Section], zstd: bool) -> None:
    body, encoding = wire.pack(sections, zstd=zstd, client="a", more=True)
    head, out = wire.unpack(body, encoding, 1 << 20)

    assert [each._replace(frames=bytes(each.frames)) for each in out] == sections
    assert (head["client"], head["more"]) == ("a", True)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_body_are_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        wire.unpack(body, None, 1 << 20)


def test_what_grows_beyond_the_limit_is_refused_before_it_is_in_memory() -> None:
    body, encoding = wire.pack([wire.Section(1, 0, bytes(1 << 20))])
    assert len(body) < 1 << 14

    with pytest.raises(TooLargeError):
        wire.unpack(body, encoding, 1 << 16)


@pytest.mark.parametrize(("oldest", "newest", "common"), [(1, 1, 1), (1, 9, 1), (0, 1, 1), (2, 3, None), (0, 0, None)])
def test_the_newest_version_that_both_speak_is_used(oldest: int, newest: int, common: int | None) -> None:
    assert wire.common_protocol(oldest, newest) == common
