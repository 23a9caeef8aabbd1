"""What may be written down: any value as plain JSON, and without the secrets in it.

`plain` turns a value into what `json.dumps` takes. `redact` does the same and replaces every credential by
"[redacted]". Four things are taken for credentials:

- the value (8 characters or more) of an environment variable with a telling name, such as HF_TOKEN, wherever it occurs,
  also URL-encoded or escaped; of a value of several lines each longer line too;
- text with the shape of a token: AKIA..., ghp_..., hf_..., sk-..., xoxb-..., a JWT, "Bearer ...", a private key, the
  user part of a URL, a signed URL's signature, a quoted literal assigned to a telling name;
- what a mapping holds under a key such as api_key, token, password or secret, in any case, with dashes or underscores;
- the argument of an option of such a name: --api-key X, --token=X, trainer.api_key=X.

It errs on the side of hiding, but a key that merely contains such a word (max_tokens, tokenizer, pad_token) stays.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import sys
import types
import urllib.parse
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

from torchtrack import guard

REDACTED: Final = "[redacted]"

_MIN_SECRET_LENGTH = 8
_MIN_SECRET_LINE_LENGTH = 16
_MAX_REPR = 1000
_MAX_ARRAY_VALUES = 1000
_MAX_DEPTH = 100
_BLOCK_CHARS = 1 << 13

_CREDENTIAL_VARIABLE = re.compile(
    r"(?:^|_)(?:TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(?:_|$)|SECRET"
    r"|PASSWORD$|APIKEY|API_KEY|^AWS_",
)
_HARMLESS_VARIABLE = re.compile(r"^AWS_(?:(?:DEFAULT_)?(?:REGION|PROFILE|OUTPUT)|CONFIG_FILE|ENDPOINT_URL.*|.*_FILE)$")

_SECRET_NAME = re.compile(
    r"(?:.*_)?(?:api_?key|password|secret|secret_key|access_key(?:_id)?|private_key|(?:access|api|auth|session)_token)"
    r"|passwd|passphrase|credentials|authorization"
    r"|(?:(?:bearer|refresh|hf|hub|huggingface|hugging_face_hub|github|gitlab|wandb)_)?token"
)

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.S)
# A token stands alone, or after the end of an escape: %20, \\n.
_TOKEN = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
    r"(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|[sr]k_(?:live|test)_\w{16,}|xox[a-z]-[\w-]{8,}|xapp-[\w-]{8,}"
    r"|AIza[\w-]{30,}|ya29\.[\w-]{16,}|pypi-[\w-]{16,}|eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]*)"
)
_TOKEN_START = re.compile(r"AKIA|ASIA|gh[opsur]_|github_pat_|glpat-|hf_|sk-|[sr]k_|xox|xapp-|AIza|ya29|pypi-|eyJ")
_BEARER = re.compile(r"\b(Bearer|Authorization: *Basic)(\s+)[\w.~+/=-]{8,}", re.I)
_USERINFO = re.compile(r"\b([a-z][a-z0-9+.-]{0,20}://)[^\s/?#'\"<>]+@", re.I)
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:token|secret|password|api[_-]?key|signature|sig|credential)=)[^&;\s#'\"<>]+", re.I
)
_OPTION = re.compile(r"(?<![^\s'\"])(--?)([A-Za-z][\w.-]*)(=|\s+)(\"[^\"]*\"|'[^']*'|[^\s'\"-][^\s'\"]*)")
_LITERAL = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z_][\w-]*)(['\"]?\s*[:=]\s*)(['\"])([^'\"\s]{8,})\3")
_ARGUMENT = re.compile(r"([-+~]*[\w./@-]+)=(.+)", re.S)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}")


def redact(value: Any, environ: Mapping[str, str] | None = None) -> Any:
    """A value as plain JSON without secrets; `environ` tells whose values are secret (default: os.environ)."""
    return Redactor(environ).value(value)


def plain(value: Any) -> Any:
    """A value as plain JSON: containers kept, scalars as numbers, the rest as text. Never waits for a device.

    Secrets stay in it, except in the text of an object of unknown type, which is cut and could be cut inside one.
    """
    return _Walk(text=str, hides_names=False, unknown=Redactor().text).visit(value)


class Redactor:
    """Replaces the secrets of one environment in texts and nested values. Immutable, so safe in any thread.

    Args:
        environ: where to take the values of credential variables from; os.environ as it is now by default.
        secrets: further texts to hide.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, secrets: Iterable[str] = ()) -> None:
        spellings = set(_spellings(os.environ if environ is None else environ))
        spellings.update(spelling for secret in secrets for spelling in _spelled(secret))
        # The longest first: of two secrets one of which begins with the other, the whole must go.
        longest_first = sorted(spellings, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """The text with every secret in it replaced."""
        if "PRIVATE KEY" in text:
            text = _PRIVATE_KEY.sub(REDACTED, text)
        if self._values is not None:
            text = self._values.sub(REDACTED, text)
        if len(text) <= _BLOCK_CHARS:
            return _without_patterns(text)
        # One regular expression over a long text would keep the interpreter from every other thread.
        return "".join(_without_patterns(block) for block in _blocks(text))

    def value(self, value: Any) -> Any:
        """A nested value as plain JSON, with every secret in it replaced."""
        return _Walk(text=self.text, hides_names=True, unknown=self.text).visit(value)


def _spellings(environ: Mapping[str, str]) -> Iterator[str]:
    """Every way in which the value of a credential variable may show up in a text."""
    for name, value in environ.items():
        upper = name.upper()
        if not _CREDENTIAL_VARIABLE.search(upper) or _HARMLESS_VARIABLE.search(upper):
            continue
        lines = [line.strip() for line in value.splitlines()]
        parts = [part for part in lines if len(part) >= _MIN_SECRET_LINE_LENGTH] if len(lines) > 1 else []
        for secret in (value, value.strip(), *parts):
            yield from _spelled(secret)
    for url in environ.get("TORCHTRACK_ALERT_URLS", "").split(","):  # each of them lets its reader write to people
        if "://" in url:
            yield from _spelled(url.strip())


def _spelled(secret: str) -> Iterator[str]:
    if len(secret) >= _MIN_SECRET_LENGTH:
        yield secret
        yield urllib.parse.quote(secret, safe="", errors="replace")
        yield urllib.parse.quote(secret, errors="replace")
        yield urllib.parse.quote_plus(secret, errors="replace")
        yield repr(secret)[1:-1]
        yield json.dumps(secret)[1:-1]


def _without_patterns(text: str) -> str:
    # Most lines hold none of these; looking for a fixed part first costs a fraction of the pattern.
    if _TOKEN_START.search(text):
        text = _TOKEN.sub(REDACTED, text)
    lower = text.lower()
    if "bearer" in lower or "basic" in lower:
        text = _BEARER.sub(rf"\1\2{REDACTED}", text)
    if "://" in text:
        text = _USERINFO.sub(rf"\1{REDACTED}@", text)
    if "=" in text:
        text = _QUERY.sub(rf"\1{REDACTED}", text)
    if "'" in text or '"' in text:
        text = _LITERAL.sub(_hide_literal, text)
    return _OPTION.sub(_hide_option, text) if "-" in text else text


def _hide_literal(match: re.Match[str]) -> str:
    name, between, quote, _ = match.groups()
    return f"{name}{between}{quote}{REDACTED}{quote}" if _is_secret_name(name) else match[0]


def _hide_option(match: re.Match[str]) -> str:
    dashes, name, between, _ = match.groups()
    return f"{dashes}{name}{between}{REDACTED}" if _is_secret_name(name) else match[0]


def _is_secret_name(name: str) -> bool:
    last = re.split(r"[./@]", name)[-1]
    normal = re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")
    return _SECRET_NAME.fullmatch(normal) is not None


def _blocks(text: str) -> Iterator[str]:
    """Pieces of whole lines, about 8 KiB each."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _BLOCK_CHARS) + 1 or len(text)
        yield text[start:end]
        start = end


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Turns a nested value into plain JSON."""

    text: Callable[[str], str]
    """What every string goes through, keys of mappings too."""
    hides_names: bool
    """Whether what stands under a secret name is replaced."""
    unknown: Callable[[str], str]
    """What the text of an object of unknown type goes through before it is cut."""

    def visit(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, enum.Enum):
            return self.text(f"{type(value).__name__}.{value.name}")
        if isinstance(value, str):
            return self.text(str(value))
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        children = children_of(value)
        if children is None:
            return self._leaf(value, above)
        if id(value) in above:
            return "[cycle]"
        if len(above) >= _MAX_DEPTH:
            return "[too deep]"
        above = (*above, id(value))
        return self._mapping(children, above) if isinstance(children, Mapping) else self._list(children, above)

    def _mapping(self, children: Mapping[Any, Any], above: tuple[int, ...]) -> dict[str, Any]:
        result = {}
        for key, value in children.items():
            name = key if isinstance(key, str) else str(self.visit(key))
            result[self.text(name)] = self._named(name, value, above)
        return result

    def _named(self, name: str, value: Any, above: tuple[int, ...]) -> Any:
        holds_nothing = value is None or isinstance(value, bool) or value == ""
        if self.hides_names and not holds_nothing and _is_secret_name(name):
            return REDACTED
        return self.visit(value, above)

    def _list(self, children: Iterable[Any], above: tuple[int, ...]) -> list[Any]:
        result: list[Any] = []
        after_option = False
        for item in children:
            if self.hides_names and isinstance(item, str):
                result.append(self._argument(item, after_option))
                after_option = item.startswith("-") and _is_secret_name(item)
            else:
                result.append(self.visit(item, above))
                after_option = False
        return result

    def _argument(self, item: str, after_option: bool) -> str:
        """A string of a list, which may be a command line."""
        if after_option and not item.startswith("-"):
            return REDACTED
        assignment = _ARGUMENT.fullmatch(item)
        if assignment and _is_secret_name(assignment[1]):
            return f"{self.text(assignment[1])}={REDACTED}"
        return self.text(item)

    def _leaf(self, value: Any, above: tuple[int, ...]) -> Any:
        module = type(value).__module__.partition(".")[0]
        if module == "numpy" and hasattr(value, "tolist"):
            if value.size <= _MAX_ARRAY_VALUES:
                return self.visit(value.tolist(), above) if value.dtype.kind in "biufSU" else self._repr(value)
            return f"array(shape={tuple(value.shape)}, dtype={value.dtype})"
        if hasattr(value, "is_leaf") and hasattr(value, "device"):
            # Reading a tensor on an accelerator would wait for the device, so would its repr.
            if value.device.type == "cpu" and value.dim() == 0:
                return self.visit(value.item(), above)
            return f"tensor(shape={tuple(value.shape)}, dtype={value.dtype}, device={value.device})"
        if isinstance(value, PurePath) or (module == "torch" and type(value).__name__ in ("dtype", "device")):
            return self.text(str(value))
        return self._repr(value)

    def _repr(self, value: Any) -> str:
        text = _ADDRESS.sub("", self.unknown(_safe_repr(value)))
        return text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 3] + "..."


def children_of(value: Any) -> Mapping[Any, Any] | Iterable[Any] | None:
    """What a container holds: a mapping for what has names, an iterable for what has an order, else None."""
    resolved = _resolved_omegaconf(value)
    if resolved is not None:
        return resolved
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Namespace | types.SimpleNamespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "keys") and hasattr(value, "__getitem__") and not isinstance(value, type):
        return {key: value[key] for key in value.keys()}  # noqa: SIM118  # only keys() is sure to be there
    return None


def _resolved_omegaconf(value: Any) -> Mapping[Any, Any] | list[Any] | None:
    """The containers of an OmegaConf node with its interpolations resolved; as written if one cannot be."""
    omegaconf = sys.modules.get("omegaconf")  # another thread may just be importing it
    if omegaconf is None or not hasattr(omegaconf, "OmegaConf") or not omegaconf.OmegaConf.is_config(value):
        return None
    try:
        container = omegaconf.OmegaConf.to_container(value, resolve=True, throw_on_missing=False)
    except omegaconf.errors.OmegaConfBaseException:
        container = omegaconf.OmegaConf.to_container(value, resolve=False, throw_on_missing=False)
    return container if isinstance(container, dict | list) else {}


@guard.never_raise("repr of a value", default="[unprintable]")
def _safe_repr(value: Any) -> str:
    return repr(value)
