"""What holds for all rules."""

from __future__ import annotations

from torchtrack.stability.rules import default_rules


def test_every_rule_says_what_it_is_based_on() -> None:
    for rule in default_rules():
        page = __import__(type(rule).__module__, fromlist=["_"]).__doc__ or ""
        assert all(f"{word}:" in page or f"{word}," in page for word in ("Reference", "Default", "Evidence")), rule.name
