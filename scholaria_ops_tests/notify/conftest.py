"""Receivers of messages, and services that tell them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.notify.receivers import MailServer, Receiver, mail_server, receiver

Telling = Callable[..., Services]


@pytest.fixture
def web() -> Iterator[Receiver]:
    with receiver() as known:
        yield known


@pytest.fixture
def post() -> Iterator[MailServer]:
    with mail_server() as known:
        yield known


@pytest.fixture
def telling(tmp_path: Path) -> Telling:
    """Services with the given settings of notifications."""

    def make(**settings: str) -> Services:
        return make_services(load_settings({"BACKUP_DIR": str(tmp_path / "backups"), "BACKUP_NOTIFY_TIMEOUT_S": "30", **settings}))

    return make
