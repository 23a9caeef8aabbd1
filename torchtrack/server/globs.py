"""Patterns of names, for an engine that knows regular expressions alone."""

from __future__ import annotations


def glob_pattern(glob: str) -> str:
    """A regular expression for a pattern with `*`, `?` and `[...]` as fnmatch has them, in the engine's syntax."""
    parts, at = [], 0
    while at < len(glob):
        end = glob.find("]", at + 2 + glob.startswith("!", at + 1)) if glob[at] == "[" else -1
        if end > 0:
            parts.append(_one_of(glob[at + 1 : end]))
            at = end + 1
            continue
        parts.append({"*": ".*", "?": "."}.get(glob[at]) or _literal(glob[at]))
        at += 1
    return "(?s)^" + "".join(parts) + "$"


def _one_of(inside: str) -> str:
    """What stands in brackets; a range that runs backwards holds nothing."""
    negated, inside = inside.startswith("!"), inside.removeprefix("!")
    spans, at = [], 0
    while at < len(inside):
        low, is_range = inside[at], inside[at + 1 : at + 2] == "-" and at + 2 < len(inside)
        high = inside[at + 2] if is_range else low
        at += 3 if is_range else 1
        if low <= high:
            spans.append(f"{_literal(low)}-{_literal(high)}" if is_range else _literal(low))
    if not spans:
        return "." if negated else "[^\\x{0}-\\x{10FFFF}]"
    return f"[{'^' if negated else ''}{''.join(spans)}]"


def _literal(character: str) -> str:
    return character if character.isalnum() or character == "_" else f"\\x{{{ord(character):x}}}"
