"""The language runs are filtered with: `state = running and config.lr < 3e-4 and (name ~ "llm-*" or "best" in tags)`.

A field is an attribute of a run, or `config.<key>`, `summary.<key>`; one with odd characters stands in backquotes.
Comparisons: = != < <= > >=, `~` for a pattern with * and ?, `in` for a list or for a run's tags; between them `and`,
`or`, `not`, parentheses. A run that lacks the field does not match, whatever is compared, so `not` finds it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import lark

from torchtrack.errors import TorchtrackError
from torchtrack.server.globs import glob_pattern
from torchtrack.server.ledger import as_text, element

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
STATE: Final = "if(lost_at = 0, texts['state'], if({now_us:Int64} > lost_at, 'lost', 'running'))"
"""SQL for the state of a run now: time alone may have changed it."""


class FilterError(TorchtrackError, ValueError):
    """A filter is not one; the message shows where, and what could stand there."""


@dataclass(frozen=True)
class Condition:
    """SQL that holds for the rows of `ledger`'s table that match, and its parameters."""

    sql: str
    parameters: Mapping[str, Any]


@functools.lru_cache(maxsize=256)
def compile_filter(text: str, fields: tuple[str, ...] = ()) -> Condition:
    """What tells whether a run matches.

    Args:
        text: the filter; empty matches all runs.
        fields: the attributes there are, so that a typing error is one.

    Raises:
        FilterError: it is no filter.
    """
    if not text.strip():
        return Condition("true", {})
    if len(text) > MAX_LENGTH:
        raise FilterError(f"a filter has at most {MAX_LENGTH} characters, this one {len(text)}")
    build = _Build(fields)
    try:
        sql: str = build.transform(_parser().parse(text))
    except lark.exceptions.VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise error.orig_exc from None
        raise
    except lark.UnexpectedInput as error:
        raise FilterError(_explain(text, error)) from None
    return Condition(sql, build.parameters)


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


_SIGNS: Final = {"==": "="}
_CONSTANTS: Final = {"true": True, "false": False}


class _Build(lark.Transformer[Any, Any]):
    """From a parse tree to SQL; texts and numbers of the filter become parameters."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__()
        self._fields = fields
        self.parameters: dict[str, Any] = {}

    def _given(self, value: Any, kind: str = "String") -> str:
        name = f"filter_{len(self.parameters)}"
        self.parameters[name] = value
        return f"{{{name}:{kind}}}"

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

    def comparison(self, parts: list[Any]) -> str:
        field, sign, wanted = parts
        return self._holds(field, _SIGNS.get(str(sign), str(sign)), wanted)

    def _holds(self, field: str, sign: str, wanted: Any) -> str:
        """Words are compared with words, numbers with numbers; what differs in kind is different, and not ordered."""
        name = self._given(field)
        text = STATE if field == "state" else f"texts[{name}]"
        there, number, truth = (f"mapContains({each}, {name})" for each in ("texts", "numbers", "bools"))
        if sign == "~":
            other = number if isinstance(wanted, bool) else truth
            return f"({there} AND NOT {other} AND match({text}, {self._given(glob_pattern(as_text(wanted)))}))"
        if isinstance(wanted, str):
            return f"({there} AND NOT {truth} AND {text} {sign} {self._given(wanted)})"
        if isinstance(wanted, bool):
            same = f"{truth} AND bools[{name}] {sign} {self._given(int(wanted), 'UInt8')}"
        else:
            same = f"{number} AND numbers[{name}] {sign} {self._given(wanted, 'Float64')}"
        unlike = f" OR ({there} AND NOT {number} AND NOT {truth})" if sign == "!=" else ""
        return f"(({same}){unlike})"

    def among(self, parts: list[Any]) -> str:
        field, wanted = parts
        return "(" + " OR ".join(["false", *(self._holds(field, "=", value) for value in wanted)]) + ")"

    def contains(self, parts: list[Any]) -> str:
        wanted, field = parts
        name = self._given(field)
        words = f"position(texts[{name}], {self._given(as_text(wanted))}) > 0"
        number, truth, several = (f"mapContains({each}, {name})" for each in ("numbers", "bools", "lists"))
        listed = f"has(lists[{name}], {self._given(element(wanted))})"
        return f"if({several}, {listed}, mapContains(texts, {name}) AND NOT {number} AND NOT {truth} AND {words})"

    def exists(self, parts: list[Any]) -> str:
        return f"mapContains(texts, {self._given(parts[0])})"

    def negation(self, parts: list[Any]) -> str:
        return f"(NOT {parts[0]})"

    def conjunction(self, parts: list[str]) -> str:
        return "(" + " AND ".join(parts) + ")"

    def disjunction(self, parts: list[str]) -> str:
        return "(" + " OR ".join(parts) + ")"
