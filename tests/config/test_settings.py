"""What `config.toml` may say about secrets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from clorefleet.config.settings import load_settings
from clorefleet.domain.errors import ConfigError

TOKEN = "hf_canary_of_the_settings"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CLORE_API_KEY", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOREFLEET_HOME", str(tmp_path))
    (tmp_path / "config").mkdir()
    file = tmp_path / "config" / "config.toml"
    file.touch(mode=0o600)
    return file


def test_a_token_in_the_environment_alone_is_used_for_nothing(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load_settings().hub_access.token_for("org/model").reveal() == ""


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_named_repository_gets_the_token_and_no_other_does(
    where: str, config: Path, monkeypatch: pytest.MonkeyPatch
):
    text = 'hub_token_for = ["org/model"]\n'
    if where == "file":
        text += f'hub_token = "{TOKEN}"\n'
    else:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    config.write_text(text)
    settings = load_settings()
    assert settings.hub_access.token_for("org/model").reveal() == TOKEN
    assert settings.hub_access.token_for("org/model2").reveal() == ""
    assert TOKEN not in repr(settings)


def test_a_token_in_a_file_that_others_can_read_is_refused(config: Path):
    config.write_text(f'hub_token = "{TOKEN}"\n')
    config.chmod(0o644)
    with pytest.raises(ConfigError, match="hub token") as caught:
        load_settings()
    assert TOKEN not in str(caught.value) and "chmod 600" in caught.value.remedy


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:canary@db.example.org/fleet",
        "postgresql+psycopg://me:can/ary@db.example.org/fleet",
        "postgresql://me@db.example.org/fleet?sslmode=require&password=canary",
        "postgresql://me@db.example.org/fleet?sslpassword=canary",
    ],
)
def test_a_stores_password_in_a_file_that_others_can_read_is_refused(config: Path, url: str):
    config.write_text(f'store_url = "{url}"\n')
    assert load_settings().store_url == url
    config.chmod(0o644)
    with pytest.raises(ConfigError, match="password") as caught:
        load_settings()
    assert "canary" not in str(caught.value) and "chmod 600" in caught.value.remedy


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@db.example.org/fleet",
        "postgresql://db.example.org:5432/fleet?sslmode=require",
        "sqlite:////home/me/fleet.db",
    ],
)
def test_a_stores_address_without_a_password_may_be_read_by_others(config: Path, url: str):
    config.write_text(f'store_url = "{url}"\n')
    config.chmod(0o644)
    assert load_settings().store_url == url


@pytest.mark.parametrize(
    "line",
    [
        'hub_token_for = "org/model"',
        "hub_token_for = [1]",
        "relay_mbit_s = -1",
        'relay_mbit_s = "50"',
        "hub_token = 5",
    ],
)
def test_a_value_of_the_wrong_type_says_how_to_write_it(line: str, config: Path):
    config.write_text(line)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "Write" in caught.value.remedy
