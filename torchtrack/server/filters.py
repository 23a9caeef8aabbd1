"""The language runs are filtered with: `state = running and config.lr < 3e-4 and (name ~ "llm-*" or "best" in tags)`.

A field is an attribute of a run, or `config.<key>`, `summary.<key>`; one with odd characters stands in backquotes.
Comparisons: = != < <= > >=, `~` for a pattern with * and ?, `in` for a list or for a run's tags; between them `and`,
`or`, `not`, parentheses. A run that lacks the field does not match, whatever is compared, so `not` finds it.
"""

from __future__ import annotations

import fnmatch
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import lark

from torchtrack.errors import TorchtrackError

_GRAMMAR: Final = r"""
    ?start: either
    ?either: both | both ("or"i both)+ -> disjunction
    ?both: one | one ("and"i one)+ -> conjunction
    ?one: "not"i one -> negation
        | "(" either ")"
        | field OPERATOR value -> comparison
        | field "in"i choices -> among
        | value "in"i field -> contains
        | field -> exists
    field: NAME | QUOTED
    choices: "[" [value ("," value)*] "]"
    value: NUMBER | STRING | WORD
    OPERATOR: "<=" | ">=" | "!=" | "==" | "=" | "<" | ">" | "~"
    NAME.2: /(config|summary|environment)\.[\w.\/-]+|[A-Za-z_]\w*/
    QUOTED: /`[^`]+`/
    WORD: /[A-Za-z_][\w.\/-]*/
    NUMBER.3: /[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(?![\w.\/-])/
    STRING: /"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/
    %ignore /\s+/
"""
MAX_LENGTH: Final = 1000
"""Characters of a filter."""
_MISSING: Final = object()

Predicate = Callable[[Mapping[str, Any]], bool]


class FilterError(TorchtrackError, ValueError):
    """A filter is not one; the message shows where, and what could stand there."""


@functools.lru_cache(maxsize=256)
def compile_filter(text: str, fields: tuple[str, ...] = ()) -> Predicate:
    """What tells whether a run matches.

    Args:
        text: the filter; empty matches all runs.
        fields: the attributes there are, so that a typing error is one.

    Raises:
        FilterError: it is no filter.
    """
    if not text.strip():
        return lambda run: True  # noqa: ARG005
    if len(text) > MAX_LENGTH:
        raise FilterError(f"a filter has at most {MAX_LENGTH} characters, this one {len(text)}")
    try:
        predicate: Predicate = _Build(fields).transform(_parser().parse(text))
    except lark.exceptions.VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise error.orig_exc from None
        raise
    except lark.UnexpectedInput as error:
        raise FilterError(_explain(text, error)) from None
    return predicate


def lookup(run: Mapping[str, Any], field: str) -> Any:
    """The value of a field of a run as `RunTable` has it; `_MISSING` if the run has none."""
    if field in run:
        return run[field]
    head, _, key = field.partition(".")
    inside = run.get(head)
    if not key or not isinstance(inside, Mapping):
        return _MISSING
    if key in inside:
        return inside[key]
    for part in key.split("."):
        inside = inside.get(part, _MISSING) if isinstance(inside, Mapping) else _MISSING
    return inside


def is_missing(value: Any) -> bool:
    """Whether `lookup` found nothing."""
    return value is _MISSING or value is None


@functools.lru_cache(maxsize=1)
def _parser() -> lark.Lark:
    return lark.Lark(_GRAMMAR, parser="earley", lexer="dynamic", maybe_placeholders=False)


_WORDS: Final = {
    "OPERATOR": "= != < <= > >= ~",
    "NAME": "a field such as state or config.lr",
    "QUOTED": "a field in `backquotes`",
    "WORD": "a word",
    "NUMBER": "a number",
    "STRING": 'a "text"',
    "IN": "in",
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "LPAR": "(",
    "RPAR": ")",
    "LSQB": "[",
    "RSQB": "]",
    "COMMA": ",",
}


def _explain(text: str, error: lark.UnexpectedInput) -> str:
    at = len(text) if isinstance(error, lark.exceptions.UnexpectedEOF) else int(error.column) - 1
    names = getattr(error, "allowed", None) or getattr(error, "expected", None) or ()
    expected = sorted(
        {_WORDS[str(getattr(name, "name", name))] for name in names if str(getattr(name, "name", name)) in _WORDS}
    )
    where = "at its end" if at >= len(text) else f"at character {at + 1}"
    hope = f"; what may stand there: {', '.join(expected)}" if expected else ""
    return f"the filter cannot be read {where}{hope}\n  {text}\n  {' ' * at}^"


_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": lambda value, pattern: fnmatch.fnmatchcase(str(value), str(pattern)),
}
_CONSTANTS: Final = {"true": True, "false": False}


class _Build(lark.Transformer[Any, Any]):
    """From a parse tree to a predicate."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__()
        self._fields = fields

    def field(self, tokens: list[Any]) -> str:
        name = str(tokens[0]).strip("`")
        head = name.partition(".")[0]
        if self._fields and head not in self._fields:
            near = ", ".join(sorted(self._fields))
            raise FilterError(f"no field {name!r} to filter by; there are {near}, and config.<key>, summary.<key>")
        return name

    def value(self, tokens: list[Any]) -> Any:
        token = tokens[0]
        if token.type == "NUMBER":
            return float(token)
        if token.type == "STRING":
            return str(token)[1:-1].replace("\\" + token[0], token[0]).replace("\\\\", "\\")
        return _CONSTANTS.get(str(token).lower(), str(token))

    def choices(self, values: list[Any]) -> list[Any]:
        return values

    def comparison(self, parts: list[Any]) -> Predicate:
        field, sign, wanted = parts
        return functools.partial(_holds, str(field), _COMPARE[str(sign)], wanted)

    def among(self, parts: list[Any]) -> Predicate:
        field, wanted = parts
        return lambda run: any(_holds(field, operator.eq, value, run) for value in wanted)

    def contains(self, parts: list[Any]) -> Predicate:
        wanted, field = parts
        return lambda run: _contains(lookup(run, field), wanted)

    def exists(self, parts: list[Any]) -> Predicate:
        return lambda run: not is_missing(lookup(run, parts[0]))

    def negation(self, parts: list[Any]) -> Predicate:
        return lambda run: not parts[0](run)

    def conjunction(self, parts: list[Predicate]) -> Predicate:
        return lambda run: all(part(run) for part in parts)

    def disjunction(self, parts: list[Predicate]) -> Predicate:
        return lambda run: any(part(run) for part in parts)


def _holds(field: str, compare: Callable[[Any, Any], bool], wanted: Any, run: Mapping[str, Any]) -> bool:
    value = lookup(run, field)
    if is_missing(value):
        return False
    if isinstance(value, bool) != isinstance(wanted, bool) and isinstance(value, int | float):
        return False
    if isinstance(wanted, str) and not isinstance(value, str):
        value = str(value)
    try:
        return bool(compare(value, wanted))
    except TypeError:
        return False


def _contains(value: Any, wanted: Any) -> bool:
    if is_missing(value) or not isinstance(value, str | list | tuple):
        return False
    return str(wanted) in value if isinstance(value, str) else wanted in value
