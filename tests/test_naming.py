"""Names for people."""

from __future__ import annotations

import re
import secrets

from torchtrack.naming import name_of


def test_a_name_is_two_words_and_a_number_and_follows_from_the_uid() -> None:
    for _ in range(200):
        uid = secrets.token_hex(8)
        assert re.fullmatch(r"[a-z]+-[a-z]+-\d{1,3}", name_of(uid))
        assert name_of(uid) == name_of(uid)


def test_names_spread_over_all_words() -> None:
    names = [name_of(f"{number:016x}") for number in range(1024)]

    assert len(set(names)) == 1024
    assert len({name.split("-")[0] for name in names}) == 32
    assert len({name.split("-")[1] for name in names}) == 32


def test_a_name_never_changes() -> None:
    assert [name_of("0" * 16), name_of("f" * 16), name_of("0123456789abcdef")] == [
        "amber-anchor-0",
        "swift-valley-983",
        "glad-ember-475",
    ]
