"""BOOSTLINE_START_TIMEOUT: how long a command waits for its servers and its store."""

import pytest

from infra.start_limit import DEFAULT_S, StartSettingError, start_limit_s


def test_the_default_and_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOOSTLINE_START_TIMEOUT", raising=False)
    assert (start_limit_s(), start_limit_s(20)) == (DEFAULT_S, 20)
    monkeypatch.setenv("BOOSTLINE_START_TIMEOUT", "0.5")
    assert (start_limit_s(), start_limit_s(20)) == (0.5, 0.5)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOSTLINE_START_TIMEOUT", text)
    with pytest.raises(StartSettingError) as error:
        start_limit_s()
    assert str(error.value) == (
        f"BOOSTLINE_START_TIMEOUT={text!r} is no number of seconds above 0. Unset it, or write it "
        "as in 600."
    )
