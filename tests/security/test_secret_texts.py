"""Secrets taken out of URLs and texts, and named by reference in their place."""

import logging
import os
import sys
import threading

import pytest

from tasks.engine.config import Config
from tasks.engine.errors import RunError, UserError
from tasks.engine.secrets import (
    by_reference,
    check_by_reference,
    clean_logs,
    cleaned,
    redact,
    referred,
    resolved,
    with_clean_errors,
    without_secrets,
)
from tasks.engine.settings import load_config

URLS = [
    pytest.param(
        "postgresql://me:hunter2@db:5432/x",
        "postgresql://me:${BOOSTLINE_SOURCE_PASSWORD}@db:5432/x",
        {"BOOSTLINE_SOURCE_PASSWORD": "hunter2"},
        id="password",
    ),
    pytest.param(
        "postgresql+psycopg://me:p%40ss%2Fw@db/x",
        "postgresql+psycopg://me:${BOOSTLINE_SOURCE_PASSWORD}@db/x",
        {"BOOSTLINE_SOURCE_PASSWORD": "p@ss/w"},
        id="encoded password",
    ),
    pytest.param(
        "mysql://me:ra/w?pass@db/x",
        "mysql://me:${BOOSTLINE_SOURCE_PASSWORD}@db/x",
        {"BOOSTLINE_SOURCE_PASSWORD": "ra/w?pass"},
        id="raw slash in a password",
    ),
    pytest.param(
        "mysql://db/x?user=me&password=hunter2&charset=utf8",
        "mysql://db/x?user=me&password=${BOOSTLINE_SOURCE_PASSWORD}&charset=utf8",
        {"BOOSTLINE_SOURCE_PASSWORD": "hunter2"},
        id="password as a parameter",
    ),
    pytest.param(
        "mysql://me:one@db/x?ssl_key_password=two",
        "mysql://me:${BOOSTLINE_SOURCE_PASSWORD}@db/x"
        "?ssl_key_password=${BOOSTLINE_SOURCE_SSL_KEY_PASSWORD}",
        {"BOOSTLINE_SOURCE_PASSWORD": "one", "BOOSTLINE_SOURCE_SSL_KEY_PASSWORD": "two"},
        id="two secrets",
    ),
    pytest.param(
        "https://h/a.csv?sv=1&sig=a%2Bb%2F%3D&se=2",
        "https://h/a.csv?sv=1&sig=${BOOSTLINE_SOURCE_SIG}&se=2",
        {"BOOSTLINE_SOURCE_SIG": "a+b/="},
        id="signed URL",
    ),
    pytest.param(
        "https://ghp_token@h/a.csv",
        "https://${BOOSTLINE_SOURCE_TOKEN}@h/a.csv",
        {"BOOSTLINE_SOURCE_TOKEN": "ghp_token"},
        id="token as user",
    ),
    pytest.param("postgresql://me:${PW}@db/x", "postgresql://me:${PW}@db/x", {}, id="reference"),
    pytest.param("postgresql://me@db/x", "postgresql://me@db/x", {}, id="no password"),
    pytest.param("https://h:80/a@b.csv", "https://h:80/a@b.csv", {}, id="a port and an @"),
    pytest.param("s3://bucket/key.parquet", "s3://bucket/key.parquet", {}, id="no secret"),
    pytest.param("a:b@c.csv", "a:b@c.csv", {}, id="a file"),
]


@pytest.mark.parametrize(("url", "reference", "values"), URLS)
def test_a_secret_is_replaced_by_a_reference_and_found_again(
    url: str, reference: str, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_reference(url) == (reference, values)
    assert by_reference(reference) == (reference, {})
    for name, value in values.items():
        monkeypatch.setenv(name, value)
        assert value not in redact(url)
    assert referred(reference) == values
    if "ra/w" not in url and "${" not in url:
        assert resolved(reference) == url
    monkeypatch.setenv("PW", "hunter2")
    values = values or ({"BOOSTLINE_SOURCE_PASSWORD": "hunter2"} if "${PW}" in url else {})
    assert by_reference(resolved(reference))[1] == values


def test_a_configuration_read_from_a_literal_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOSTLINE_SOURCE_PASSWORD", "")  # restored at the end of the test
    config = load_config(data="postgresql://me:hunter2@db/x", target="y")
    assert "hunter2" not in config.model_dump_json()
    assert config.data.shown == "postgresql://me:***@db/x"
    assert resolved(config.data.source) == "postgresql://me:hunter2@db/x"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(UserError) as refused:
        resolved("postgresql://me:${NOWHERE_TO_BE_FOUND}@db/x")
    assert str(refused.value) == (
        "data.source='postgresql://me:${NOWHERE_TO_BE_FOUND}@db/x' refers to the environment "
        "variable NOWHERE_TO_BE_FOUND, which is not set. Set it where Boostline runs: "
        "export NOWHERE_TO_BE_FOUND=…"
    )


def test_a_literal_in_the_parameters_of_a_flow_run_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        check_by_reference("postgresql://me:hunter2@db/x")
    assert str(refused.value) == (
        "data.source='postgresql://me:***@db/x' holds a secret, and Prefect keeps parameters in "
        "clear. Write 'postgresql://me:${BOOSTLINE_SOURCE_PASSWORD}@db/x' and set "
        "BOOSTLINE_SOURCE_PASSWORD in the environment of the flow's process. Change the secret: "
        "it has been kept with this run."
    )
    check_by_reference(Config().data.source)


@pytest.mark.parametrize(
    ("said", "clean"),
    [
        ("no answer from http://me:pw@h:1/x, see a@b", "no answer from http://***@h:1/x, see a@b"),
        ("at mysql://me:a/b@h/x", "at mysql://***@h/x"),
        ("http://h:5000/a@b is fine", "http://h:5000/a@b is fine"),
        ("Bearer sesame-open-1 refused", "Bearer *** refused"),
        ("sesame%2Fopen", "***"),
        ("sesame/open", "***"),
        ("reopened sesame-open-12", "reopened sesame-open-12"),
        ("short: abc", "short: abc"),
    ],
)
def test_texts_without_secrets(said: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_API_KEY", "sesame-open-1")
    monkeypatch.setenv("DB_PASSWORD", "sesame/open")
    monkeypatch.setenv("TINY_TOKEN", "abc")
    assert without_secrets(said) == clean
    assert str(UserError(said)) == str(RunError(said)) == clean


def test_errors_and_logs_without_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("THE_API_KEY", "sesame-open-1")

    @with_clean_errors
    def fail() -> None:
        try:
            raise ValueError("key sesame-open-1 is wrong")
        except ValueError as error:
            raise OSError("http://me:pw@h/ failed") from error

    with clean_logs():
        with pytest.raises(OSError, match=r"^http://\*\*\*@h/ failed$") as raised:
            fail()
        assert str(raised.value.__cause__) == "key *** is wrong"
        try:
            raise ValueError("key sesame-open-1 is wrong")
        except ValueError:
            logging.getLogger("somebody").exception("with %s", "sesame-open-1")
    assert "with ***" in caplog.text and "ValueError: key *** is wrong" in caplog.text
    assert "sesame" not in caplog.text
    error_without_words = KeyError(3)
    cleaned(error_without_words)
    assert error_without_words.args == (3,)


def test_variables_that_others_take_away_meanwhile_are_no_error() -> None:
    """MLflow does, while another thread imports it."""
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            os.environ["BOOSTLINE_SOURCE_PASSING"] = "hunter2"
            os.environ.pop("BOOSTLINE_SOURCE_PASSING")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(2_000):
            without_secrets("nothing to hide")
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(before)
