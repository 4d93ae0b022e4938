"""The configuration and environment stored in a run folder hold no passwords."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from imgcls.runs.provenance import hide_secrets, redact, write_configuration
from imgcls.runs.recording import Recording

SECRET = "q7Zk"


@pytest.mark.parametrize(
    "text",
    [
        "search.storage=postgresql://me:q7Zk@host/db",
        "postgresql://me:a@q7Zk@host/db",
        "mysql://me:a/q7Zk@host/db",
        "https://q7Zk@host/x",
        "https://q7Zk:x-oauth-basic@host/x",
        "https://h/a.zip?X-Amz-Credential=q7Zk&X-Amz-Signature=q7Zk",
        "https://h/a.zip?X-Amz-Security-Token=q7Zk%2F",
        "https://h/a.zip?AWSAccessKeyId=q7Zk&Signature=q7Zk%3D",
        "https://h/a.zip?X-Goog-Signature=q7Zk",
        "https://h/a.zip?sv=2020&sig=q7Zk%3D",
        "https://h/a.zip?password=q7Zk",
        "https://h/a.zip?token=q7Zk&x=1",
        "https://h/a.zip?key=q7Zk",
        "logger.api_key=q7Zk",
        "+logger.api_key='a q7Zk'",
        "WANDB_API_KEY: q7Zk",
        "AWS_SECRET_ACCESS_KEY=q7Zk",
        '"api-key": "q7Zk"',
        "Authorization: Bearer q7Zk",
        "launch.environment={HF_TOKEN: q7Zk, A: b}",
    ],
)
def test_every_form_of_a_secret_is_hidden(text: str, tmp_path: Path) -> None:
    assert SECRET not in hide_secrets(text)
    write_configuration(tmp_path, {"a": [text], "b": {"c": text}}, [text])
    for file in tmp_path.iterdir():
        assert SECRET not in file.read_text()
        yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "data.root=s3://bucket/key",
        "https://host/path?email=a@b.de",
        "model.options={class_token: false}",
        "reg_tokens: 4",
        "optim.lr=0.1",
        "run_dir=runs/größe (1)",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert hide_secrets(text) == text


def test_options_that_are_secrets_are_hidden_by_their_names() -> None:
    options = {"logger": {"api_key": "q7Zk", "offline": False}, "environment": {"HF_TOKEN": "q7Zk"}, "n": [1, None]}
    hidden = {"logger": {"api_key": "…", "offline": False}, "environment": {"HF_TOKEN": "…"}, "n": [1, None]}
    assert redact(options) == hidden


def test_a_run_resumes_with_another_signature_of_the_same_address(tmp_path: Path) -> None:
    for signature in ("q7Zk1", "q7Zk2"):
        config = {"data": {"url": f"https://h/a.zip?X-Amz-Signature={signature}"}, "logger": {"api_key": signature}}
        with Recording(tmp_path, config, [f"data.url={config['data']['url']}"]):
            pass
    assert json.loads((tmp_path / "environment.json").read_text())["versions"]
    assert not [file for file in tmp_path.iterdir() if SECRET in file.read_text()]
