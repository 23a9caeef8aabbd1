"""Servers and their keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchtrack import credentials


def test_a_key_is_kept_for_its_server_alone_and_only_its_user_can_read_it() -> None:
    umask = os.umask(0)
    try:
        credentials.keep("https://a.example/", "tt_a")
        path = credentials.keep("https://b.example", "tt_b")
    finally:
        os.umask(umask)

    assert credentials.default_url() == "https://b.example"
    assert (credentials.key_for("https://a.example"), credentials.key_for("https://b.example/")) == ("tt_a", "tt_b")
    assert credentials.key_for("https://c.example") is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.keep("https://a.example", "tt_a")
    monkeypatch.setenv("TORCHTRACK_URL", "https://b.example/")
    monkeypatch.setenv("TORCHTRACK_API_KEY", " tt_env\n")

    assert (credentials.default_url(), credentials.key_for("https://a.example")) == ("https://b.example", "tt_env")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"default": 1, "keys": 2}'])
def test_a_damaged_file_is_as_none(text: str) -> None:
    path: Path = credentials.credentials_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)

    assert (credentials.default_url(), credentials.key_for("https://a.example")) == (None, None)
    credentials.keep("https://a.example", "tt_a")
    assert credentials.key_for("https://a.example") == "tt_a"


@pytest.mark.parametrize("url", ["https://a.example:1/x/", "http://127.0.0.1:8", "http://localhost", "http://[::1]:9"])
def test_encrypted_or_on_this_machine_is_taken(url: str) -> None:
    assert credentials.check_url(url) == url.rstrip("/")


def test_another_machine_without_encryption_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="could be read on the way"):
        credentials.check_url("http://a.example")
    monkeypatch.setenv("TORCHTRACK_ALLOW_HTTP", "1")
    assert credentials.check_url("http://a.example") == "http://a.example"
