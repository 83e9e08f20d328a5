"""Messages through apprise's own code, to local receivers that judge them as the real ones do."""

from __future__ import annotations

import logging
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scholaria_ops.errors import ConfigError
from scholaria_ops.operations.notify.events import Message
from scholaria_ops.operations.notify.sending import NotDelivered, send
from scholaria_ops.operations.notify.targets import Target, targets_of
from scholaria_ops.operations.services import Services
from scholaria_ops.settings import load_settings
from scholaria_ops.settings.notify import webhook_kind
from scholaria_ops_tests.notify.conftest import Telling
from scholaria_ops_tests.notify.receivers import MailServer, Receiver, mail_server
from scholaria_ops_tests.offsite.tls import self_signed

MESSAGE = Message(
    level="failure",
    subject="[FAILED] Backup of daily set 20260301_020000 failed: qdrant",
    body="qdrant could not be backed up: <!channel> @everyone 백업\nNext: Mend it & run again.",
    at=datetime(2026, 3, 1, 2, tzinfo=UTC),
    run_id="r-1",
    key="backup",
)
SLACK = "/services/T0AAAAAAA/B0BBBBBBB/s3cr3tTokenOfTheChannel0"
DISCORD = "/api/webhooks/123456789012345678/s3cr3tTokenOfDiscord_-x"


def send_all(services: Services) -> None:
    for target in targets_of(services.settings):
        send(services.settings, target, MESSAGE)


def test_a_slack_compatible_server_elsewhere_gets_text(web: Receiver, telling: Telling) -> None:
    send_all(telling(BACKUP_NOTIFY_WEBHOOK=f"slack+{web.url}{SLACK}"))
    (seen,) = web.seen
    assert seen.path == SLACK
    assert seen.body.keys() == {"text"}
    assert seen.body["text"].startswith("[FAILED] Backup of daily set 20260301_020000 failed: qdrant: qdrant could not")
    assert "백업" in seen.body["text"]


def test_slack_itself_gets_a_line_and_a_coloured_attachment(web: Receiver, telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is Slack's; its packets go to the local receiver."""
    real = socket.create_connection
    monkeypatch.setattr("urllib3.util.connection.create_connection", lambda *_, **__: real(("127.0.0.1", web.port)))
    send_all(telling(BACKUP_NOTIFY_WEBHOOK=f"http://hooks.slack.com{SLACK}"))
    (seen,) = web.seen
    assert seen.path == SLACK
    assert seen.headers["Host"] == "hooks.slack.com"
    assert seen.body["text"] == MESSAGE.subject
    (attachment,) = seen.body["attachments"]
    assert "could not be backed up" in attachment["text"]
    assert attachment["color"].startswith("#")


def test_discord_gets_content_that_calls_nobody(web: Receiver, telling: Telling) -> None:
    send_all(telling(BACKUP_NOTIFY_WEBHOOK=f"discord+{web.url}{DISCORD}"))
    (seen,) = web.seen
    assert seen.path == DISCORD
    assert seen.body["content"].startswith(MESSAGE.subject)
    assert seen.body["allowed_mentions"] == {"parse": []}


def test_any_other_webhook_gets_plain_json_with_the_facts(web: Receiver, telling: Telling) -> None:
    send_all(telling(BACKUP_NOTIFY_WEBHOOK=f"{web.url}/hook/abcdef?token=t0ken-of-it"))
    (seen,) = web.seen
    assert seen.path == "/hook/abcdef?token=t0ken-of-it"
    assert seen.body["title"] == MESSAGE.subject
    assert seen.body["message"] == MESSAGE.body
    assert {k: seen.body[k] for k in ("level", "key", "run_id", "type")} == {
        "level": "failure",
        "key": "backup",
        "run_id": "r-1",
        "type": "failure",
    }


def test_the_longest_message_fits_discord(web: Receiver, telling: Telling) -> None:
    services = telling(BACKUP_NOTIFY_WEBHOOK=f"discord+{web.url}{DISCORD}")
    long = MESSAGE.model_copy(update={"subject": "s" * 140, "body": "b" * 1700})
    send(services.settings, targets_of(services.settings)[0], long)
    assert len(web.seen) == 1, "one message, not several parts"


@pytest.mark.parametrize("address", [f"slack+URL{SLACK}", f"discord+URL{DISCORD}", "URL/hook/s3cr3tPathOfIt"])
@pytest.mark.parametrize("trouble", ["429", "500", "404", "302", "hang", "refused"])
def test_f23_what_went_wrong_is_said_and_no_address(
    web: Receiver, telling: Telling, address: str, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = web.url
    if trouble == "hang":
        web.hang_s = 30
    elif trouble == "refused":
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    else:
        web.answer = int(trouble)
        web.headers = {"Location": f"{web.url}/elsewhere", "Retry-After": "1"}
    services = telling(BACKUP_NOTIFY_WEBHOOK=address.replace("URL", url), BACKUP_NOTIFY_TIMEOUT_S="1" if trouble == "hang" else "30")
    with pytest.raises(NotDelivered) as caught:
        send_all(services)
    told = str(caught.value)
    expected = {"hang": "timed out", "refused": "Connection refused"}.get(trouble, trouble)
    assert expected in told
    assert not [s.path for s in web.seen if "elsewhere" in s.path], "a redirection is not followed with a secret in hand"
    for text in (told, caplog.text, repr(caught.value)):
        assert "s3cr3t" not in text


def test_mail_arrives_as_plain_text(post: MailServer, telling: Telling) -> None:
    services = telling(
        BACKUP_NOTIFY_EMAIL="kim@example.org, lee@example.org",
        BACKUP_SMTP_HOST="127.0.0.1",
        BACKUP_SMTP_PORT=str(post.port),
        BACKUP_SMTP_TLS="none",
        BACKUP_SMTP_FROM="backups@example.org",
    )
    send_all(services)
    assert [to for to, _, _ in post.mails] == [["kim@example.org"], ["lee@example.org"]]
    assert "could not be backed up" in post.mails[0][2]
    assert "백업" in post.mails[0][2]


def test_a_recipient_that_is_refused_is_told_with_the_servers_words(post: MailServer, telling: Telling) -> None:
    post.unknown = {"lee@example.org"}
    services = telling(
        BACKUP_NOTIFY_EMAIL="lee@example.org,kim@example.org",
        BACKUP_SMTP_HOST="127.0.0.1",
        BACKUP_SMTP_PORT=str(post.port),
        BACKUP_SMTP_TLS="none",
        BACKUP_SMTP_FROM="backups@example.org",
    )
    lee, kim = targets_of(services.settings)
    with pytest.raises(NotDelivered, match=r"550.*no such user here"):
        send(services.settings, lee, MESSAGE)
    send(services.settings, kim, MESSAGE)
    assert [to for to, _, _ in post.mails] == [["kim@example.org"]]


def test_mail_goes_over_starttls_with_a_login_and_a_wrong_password_is_said(telling: Telling, tmp_path: Path) -> None:
    pair = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    settings = {
        "BACKUP_NOTIFY_EMAIL": "kim@example.org",
        "BACKUP_SMTP_HOST": "127.0.0.1",
        "BACKUP_SMTP_USER": "ops",
        "BACKUP_SMTP_PASSWORD": "s3cr3t-of-mail",
        "BACKUP_SMTP_FROM": "backups@example.org",
    }
    with mail_server(password="s3cr3t-of-mail", tls=context) as server:
        settings["BACKUP_SMTP_PORT"] = str(server.port)
        with pytest.raises(NotDelivered, match=r"(?i)certificate"):
            send_all(telling(**settings))
        send_all(telling(**settings, BACKUP_SMTP_VERIFY_TLS="false"))
        assert len(server.mails) == 1
        wrong = settings | {"BACKUP_SMTP_PASSWORD": "s3cr3t-but-wrong", "BACKUP_SMTP_VERIFY_TLS": "false"}
        with pytest.raises(NotDelivered, match="535") as caught:
            send_all(telling(**wrong))
        assert "s3cr3t" not in str(caught.value)


def test_a_mail_server_that_is_not_there_is_said(telling: Telling) -> None:
    settings = {"BACKUP_NOTIFY_EMAIL": "kim@example.org", "BACKUP_SMTP_HOST": "127.0.0.1", "BACKUP_SMTP_PORT": "1"}
    with pytest.raises(NotDelivered, match="Connection refused"):
        send_all(telling(**settings))


def test_targets_are_named_by_kind_and_host_only(telling: Telling) -> None:
    services = telling(
        BACKUP_NOTIFY_EMAIL="kim@example.org",
        BACKUP_SMTP_HOST="mail",
        BACKUP_NOTIFY_WEBHOOK=f"https://hooks.slack.com{SLACK}, https://hooks.slack.com{SLACK}2, https://discord.com{DISCORD}, http://a:8/x",
    )
    named = targets_of(services.settings)
    assert [t.name for t in named] == [
        "mail kim@example.org",
        "slack hooks.slack.com",
        "slack hooks.slack.com (2)",
        "discord discord.com",
        "json a:8",
    ]
    assert "s3cr3t" not in repr(named) + repr(services.settings)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://hooks.slack.com/services/x", "slack"),
        ("https://ptb.discord.com/api/webhooks/1/x", "discord"),
        ("https://evil-discord.com/x", "json"),
        ("slack+https://chat.example.org/hooks/x", "slack"),
        ("json+https://hooks.slack.com/x", "json"),
    ],
)
def test_webhooks_are_known_by_host_or_prefix(text: str, kind: str) -> None:
    assert webhook_kind(text)[0] == kind


def test_wrong_settings_are_refused_without_showing_an_address() -> None:
    for name, value in (
        ("BACKUP_NOTIFY_WEBHOOK", "https://ok.example.org/x,ftp://s3cr3t.example.org/s3cr3t"),
        ("BACKUP_HEARTBEAT_URL", "s3cr3t"),
        ("BACKUP_NOTIFY_EMAIL", "not an address"),
        ("BACKUP_NOTIFY_ON", "failure,panic"),
    ):
        with pytest.raises(ConfigError, match=name) as caught:
            load_settings({name: value})
        assert "s3cr3t" not in str(caught.value)
    with pytest.raises(ConfigError, match="no mail server"):
        targets_of(load_settings({"BACKUP_NOTIFY_EMAIL": "a@b"}))


@pytest.mark.parametrize(("subject", "path"), [("[OK] Backup is well", "/ping/s3cr3t-uuid"), ("[FAILED] x", "/ping/s3cr3t-uuid/fail")])
def test_the_heartbeat_is_pinged_and_told_of_failures(
    web: Receiver, telling: Telling, subject: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    services = telling(BACKUP_HEARTBEAT_URL=f"{web.url}/ping/s3cr3t-uuid")
    assert services.settings.heartbeat_url
    target = Target("heartbeat", "heartbeat here", services.settings.heartbeat_url)
    send(services.settings, target, MESSAGE.model_copy(update={"subject": subject, "level": "heartbeat"}))
    assert [s.path for s in web.seen] == [path]
    web.answer = 500
    with pytest.raises(NotDelivered, match="answered 500"):
        send(services.settings, target, MESSAGE)
    assert "s3cr3t" not in caplog.text
