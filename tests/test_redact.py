"""No secret is ever written down, and nothing else is lost."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import urllib.parse
from argparse import Namespace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchtrack.redact import REDACTED, Redactor, plain, redact

CANARY = "canary-7f3a91c2"
ENVIRON = {"TT_API_KEY": CANARY, "PATH": "/usr/bin", "HOME": "/home/somebody"}


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 2


@dataclasses.dataclass
class Inner:
    rate: float
    sizes: tuple[int, ...]


class Named:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Named({self.text})"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_BEARER",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "WANDB_API_KEY",
        "TORCHTRACK_API_KEY",
        "OPENAI_API_KEY",
        "GITHUB_TOKEN",
        "MY_SECRET_VALUE",
        "MY_SECRETS",
        "DB_PASSWORD",
        "PGPASSWORD",
        "hf_token",
        "COMET_APIKEY",
        "AZURE_CLIENT_SECRET",
        "NPM_TOKEN_READ",
        "GCP_PRIVATE_KEY",
    ],
)
def test_the_value_of_a_credential_variable_is_secret_everywhere(name: str) -> None:
    assert redact(f"failed with {CANARY}!", {name: CANARY}) == f"failed with {REDACTED}!"


@pytest.mark.parametrize(
    "name",
    ["PATH", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "KEYBOARD"],
)
def test_the_value_of_another_variable_is_no_secret(name: str) -> None:
    assert redact("in us-east-1a", {name: "us-east-1a"}) == "in us-east-1a"


def test_a_value_too_short_to_tell_apart_is_no_secret() -> None:
    assert redact("the seventh", {"MY_TOKEN": "seventh"}) == "the seventh"


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert redact(CANARY) == REDACTED


@pytest.mark.parametrize(
    "spell", [urllib.parse.quote_plus, lambda text: urllib.parse.quote(text, safe=""), json.dumps, repr]
)
def test_a_secret_is_found_in_every_spelling(spell: Any) -> None:
    value = "p\\w/\"d' +ü=1"
    assert redact(spell(value), {"MY_PASSWORD": value}).strip("'\"") == REDACTED


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    environ = {"A_TOKEN": "12345678", "B_TOKEN": "12345678-and-more"}
    assert redact("12345678-and-more 12345678", environ) == f"{REDACTED} {REDACTED}"


def test_each_line_of_a_secret_of_several_lines_is_secret() -> None:
    environ = {"SSH_PRIVATE_KEY": "first line of a key\nsecond line of a key\n"}
    assert redact("it says second line of a key", environ) == f"it says {REDACTED}"


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0123456789_abcdefghijklmnop",
        "glpat-ABCdef0123456789xyzq",
        "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345",
        "sk-proj-aBcDeFgHiJkLmNoPqRsTuVwXyZ",
        "xoxb-123456789012-abcdefABCDEF",
        "AIzaSyA-1234567890abcdefghijklmnopqrstu",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123-_",
    ],
)
def test_text_with_the_shape_of_a_token_is_hidden(token: str) -> None:
    assert redact(f"got '{token}', bye", {}) == f"got '{REDACTED}', bye"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {REDACTED}"),
        ("https://user:pass@host/path", f"https://{REDACTED}@host/path"),
        ("postgresql+psycopg://u:p%40ss@db:5432/x", f"postgresql+psycopg://{REDACTED}@db:5432/x"),
        ("https://h/f?X-Amz-Signature=ab12&part=1", f"https://h/f?X-Amz-Signature={REDACTED}&part=1"),
        ("https://h/f?access_token=ab12#top", f"https://h/f?access_token={REDACTED}#top"),
        ("python train.py --api-key abc --lr 3", f"python train.py --api-key {REDACTED} --lr 3"),
        ("python train.py --token='a b' --lr 3", f"python train.py --token={REDACTED} --lr 3"),
        ("+    api_key = 'abcdefgh12'", f"+    api_key = '{REDACTED}'"),
        ('{"password": "correct horse"}', '{"password": "correct horse"}'),
        ('{"password": "correct-horse"}', f'{{"password": "{REDACTED}"}}'),
    ],
)
def test_a_credential_is_hidden_in_its_surroundings(text: str, expected: str) -> None:
    assert redact(text, {}) == expected


@pytest.mark.parametrize("before", ["%20", "\\n", "\\t", "_", "=", '"', "/"])
def test_a_token_is_told_from_what_stands_before_it(before: str) -> None:
    assert redact(before + "ghp_16C7e42F292c6912E7710c83", {}) == before + REDACTED


def test_a_private_key_is_hidden_with_all_its_lines() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\nZXktdjEA\n-----END OPENSSH PRIVATE KEY-----"
    assert redact(f"a\n{key}\nb", {}) == f"a\n{REDACTED}\nb"


def test_a_private_key_that_was_cut_is_hidden_to_the_end() -> None:
    assert redact("a\n-----BEGIN PRIVATE KEY-----\nb3Blbn", {}) == f"a\n{REDACTED}"


@pytest.mark.parametrize(
    "text",
    [
        "step 100 | loss 2.5e-1 | tokens/s 123456 | eta 0:01:02",
        "self_attention.q_proj.weight",
        "https://github.com/org/repo?tab=readme&token_count=5",
        "git@github.com:org/repo.git",
        "--max-tokens 512 --tokenizer gpt2 --pad-token <pad>",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "risk-averse task-oriented desk-research-results-2024",
        "token = tokenizer.decode(ids)",
        "lr: 'constant_with_warmup'",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text, ENVIRON) == text


def test_a_secret_deep_in_a_long_text_is_hidden_and_the_rest_stays() -> None:
    lines = [f"line {number} of a long diff" for number in range(5000)]
    text = "\n".join([*lines, f"+ {CANARY}", *lines])
    assert redact(text, ENVIRON) == text.replace(CANARY, REDACTED)


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "API-KEY",
        "apiKey",
        "token",
        "Token",
        "password",
        "passwd",
        "secret",
        "hf_token",
        "wandb_api_key",
        "db.password",
        "client-secret",
    ],
)
def test_what_a_mapping_holds_under_a_secret_key_is_hidden(key: str) -> None:
    assert redact({key: "x", "other": 1}, {}) == {key: REDACTED, "other": 1}


def test_a_number_or_a_container_under_a_secret_key_is_hidden() -> None:
    assert redact({"password": 12345678, "secret": {"a": ["b"]}}, {}) == {"password": REDACTED, "secret": REDACTED}


def test_an_absent_secret_is_told_as_absent() -> None:
    assert redact({"token": None, "password": "", "api_key": False}, {}) == {
        "token": None,
        "password": "",
        "api_key": False,
    }


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer": "x", "max_tokens": 5},
        {"pad_token": "<pad>", "eos_token": "</s>", "num_secrets": 3, "token_dropout": 0.1, "secretary": "Kim"},
        {"keys": [1, 2], "password_length": 12, "api_key_file": "~/key"},
    ],
)
def test_a_key_that_only_contains_such_a_word_stays(config: dict[str, Any]) -> None:
    assert redact(config, ENVIRON) == config


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["t.py", "--api-key", "X", "--lr", "3"], ["t.py", "--api-key", REDACTED, "--lr", "3"]),
        (["t.py", "--hf_token", "X"], ["t.py", "--hf_token", REDACTED]),
        (["t.py", "--token=X y"], ["t.py", f"--token={REDACTED}"]),
        (["t.py", "+wandb.api_key=X"], ["t.py", f"+wandb.api_key={REDACTED}"]),
        (["t.py", "--token", "--lr", "3"], ["t.py", "--token", "--lr", "3"]),
        (["t.py", "--max-tokens", "5", "a.tokens=3"], ["t.py", "--max-tokens", "5", "a.tokens=3"]),
    ],
)
def test_the_argument_of_a_secret_option_is_hidden(argv: list[str], expected: list[str]) -> None:
    assert redact(argv, {}) == expected


def plant(leaf: str) -> st.SearchStrategy[Any]:
    """Nested structures of all kinds with the leaf somewhere in them."""
    text = st.text(max_size=12)
    planted = st.one_of(
        st.just(leaf),
        st.builds(lambda a, b: a + leaf + b, text, text),
        st.just(leaf.encode()),
        st.just(ValueError(leaf)),
        st.just(Named(leaf * 100)),
        st.builds(lambda size: Named("x" * size + leaf), st.integers(980, 1000)),
        st.just(PurePosixPath("/data") / leaf),
        st.just({leaf}),
        st.just({leaf: 1}),
        st.just({(leaf, 1): 2}),
        st.just(Inner(leaf, ())),  # type: ignore[arg-type]  # what users do
        st.just(Namespace(a=leaf)),
        st.just(np.array([leaf])),
        st.just(["--name", leaf]),
        st.just(f"https://h/?q={urllib.parse.quote(leaf)}"),
    )
    other = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
    return st.recursive(
        planted,
        lambda inner: st.one_of(
            st.lists(st.one_of(other, inner), max_size=3).flatmap(lambda some: inner.map(lambda one: [*some, one])),
            st.tuples(inner, other),
            st.dictionaries(st.one_of(text, st.integers()), inner, min_size=1, max_size=3),
            inner.map(lambda value: types.SimpleNamespace(value=value)),
        ),
        max_leaves=6,
    )


@given(plant(CANARY))
def test_a_planted_secret_never_survives(value: Any) -> None:
    assert CANARY not in json.dumps(redact(value, ENVIRON))


@given(plant(" hf_" + "aB3" * 10 + " "))
def test_a_planted_token_of_unknown_value_never_survives(value: Any) -> None:
    assert "aB3" * 10 not in json.dumps(redact(value, {}))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abcxyz0189 _.", max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", max_size=8), inner, max_size=4),
)


@given(_json)
def test_json_without_secrets_stays_as_it_is(value: Any) -> None:
    assert redact(value, ENVIRON) == value
    assert plain(value) == value


def test_a_cycle_ends() -> None:
    value: dict[str, Any] = {"a": 1}
    value["self"] = [value]
    assert redact(value, {}) == {"a": 1, "self": ["[cycle]"]}


def test_one_object_in_two_places_is_no_cycle() -> None:
    shared = [1]
    assert redact({"a": shared, "b": shared}, {}) == {"a": [1], "b": [1]}


def test_a_structure_deeper_than_json_can_be_ends() -> None:
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    assert "[too deep]" in json.dumps(redact(value, {}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(1), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.zeros(2000), "array(shape=(2000,), dtype=float64)"),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(7), 7),
        (torch.nn.Parameter(torch.tensor(1.5)), 1.5),
        (torch.zeros(3), "tensor(shape=(3,), dtype=torch.float32, device=cpu)"),
        (torch.zeros((), device="meta"), "tensor(shape=(), dtype=torch.float32, device=meta)"),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.device("cuda", 1), "cuda:1"),
        (Path("a") / "b", "a/b"),
        (Color.RED, "Color.RED"),
        (Level.HIGH, "Level.HIGH"),
        (Inner(0.1, (1, 2)), {"rate": 0.1, "sizes": [1, 2]}),
        (Namespace(a=1), {"a": 1}),
        ({3: "a", None: "b", (1, 2): "c"}, {"3": "a", "None": "b", "[1, 2]": "c"}),
        ({2, 1}, [1, 2]),
        (b"ab", "b'ab'"),
        (2 + 1j, "(2+1j)"),
        (10**30, 10**30),
    ],
    ids=repr,
)
def test_values_become_plain(value: Any, expected: Any) -> None:
    got = plain(value)
    assert got == expected
    assert type(got) is type(expected)


def test_numbers_json_lacks_stay_numbers() -> None:
    assert math.isnan(plain({"a": float("nan")})["a"])
    assert plain([np.float64("inf"), -math.inf]) == [math.inf, -math.inf]


def test_an_unknown_object_is_told_without_its_address() -> None:
    assert plain(object()) == "<object object>"
    assert plain(print) == "<built-in function print>"
    assert "0x" not in plain(lambda: None)


def test_a_long_description_is_cut() -> None:
    assert plain(Named("x" * 5000)) == "Named(" + "x" * 991 + "..."


@pytest.mark.usefixtures("expect_internal_failures")
def test_an_object_that_cannot_describe_itself_is_told_so() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert plain([Broken()]) == ["[unprintable]"]


def test_the_value_given_is_not_changed() -> None:
    value = {"token": "x", "list": [{"password": "y"}]}
    Redactor({}).value(value)
    assert value == {"token": "x", "list": [{"password": "y"}]}


def test_plain_leaves_secrets_to_the_user() -> None:
    assert plain({"token": "x", "argv": ["--api-key", "y"]}) == {"token": "x", "argv": ["--api-key", "y"]}


def test_plain_hides_secrets_of_the_environment_in_what_it_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TT_API_KEY", CANARY)
    assert CANARY[:6] not in plain(Named("x" * 985 + CANARY))


def test_addresses_of_alerts_are_hidden_each_by_itself() -> None:
    redactor = Redactor({"TORCHTRACK_ALERT_URLS": "slack://T1/T2/T3, json://host/hook"}, secrets=["tgram://bot/chat"])

    assert redactor.value(["slack://T1/T2/T3", "x json://host/hook", "tgram://bot/chat"]) == [
        "[redacted]",
        "x [redacted]",
        "[redacted]",
    ]
