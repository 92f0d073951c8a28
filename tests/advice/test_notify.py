"""Advice about notifications: provoked and followed, without a run."""

from __future__ import annotations

import pytest
from helpers.advice import says

from multistill.config import NotifyConfig
from multistill.config.notify import NOTIFY_COMMAND
from multistill.pipeline.notify import Notifier


def problems(config: NotifyConfig, command: str | None = None) -> list[str]:
    return list(Notifier(config, command, print).problems())


def test_webhooks_and_commands_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MULTISTILL_WEBHOOK", "MULTISTILL_WEBHOOK_ANN", NOTIFY_COMMAND):
        monkeypatch.delenv(name, raising=False)
    named = NotifyConfig(webhook_env="MULTISTILL_WEBHOOK_ANN")
    [missing] = problems(named)
    says("is not set; put the webhook's address into it, or remove the key", missing)
    assert problems(NotifyConfig()) == []
    monkeypatch.setenv("MULTISTILL_WEBHOOK_ANN", "file:///etc/s3cret")
    [wrong] = problems(named)
    says("is no address of a webhook such as https://HOST/PATH; correct it, or unset it", wrong)
    assert "s3cret" not in wrong
    monkeypatch.setenv("MULTISTILL_WEBHOOK_ANN", "https://chat.lab/hook")
    assert problems(named) == []
    for command in ("no-such-program --now", "TOKEN=s3cret curl", " "):
        [sentence] = problems(NotifyConfig(), command)
        says("cannot be run on this machine; correct --notify-command or", sentence)
        assert "s3cret" not in sentence
    for command in ("curl -H 'token: s3cret", "curl s3cret\\"):
        [sentence] = problems(NotifyConfig(), command)
        says(
            "the quotes or backslashes in the command for notifications do not match; correct ",
            sentence,
        )
        assert "s3cret" not in sentence
    assert problems(NotifyConfig(), "cat -") == []
