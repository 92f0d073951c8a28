"""Whose records these are: the account that ran a job and the name it logs in to MLflow with."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

SUBMITTER = "MULTISTILL_SUBMITTED_BY"
"""Environment variable of a job on a cluster, where the account is the cluster's own: who
submitted it."""


@dataclass(frozen=True)
class Owner:
    """Who started a run. Contains no secret.

    Attributes:
        user: account on the machine; `unknown` for a container user without a name.
        login: user name on the tracking server; empty without one, e.g. with a token.
    """

    user: str
    login: str = ""

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Owner:
        """The owner that a journal's header names; nobody, where it names none."""
        owner = header.get("owner")
        if not isinstance(owner, Mapping):
            return cls("")
        return cls(str(owner.get("user", "")), str(owner.get("login", "")))

    @property
    def name(self) -> str:
        return self.login or self.user

    def may_send(self, other: Owner) -> bool:
        """Whether records of `other` are this owner's own, and go out under this login.

        A journal without a login was written for a server that asked for none, or with a token.
        """
        return self.user == other.user and other.login in ("", self.login)

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def current_owner(uri: str) -> Owner:
    """The account of this process and the login that MLflow sends to `uri`."""
    return Owner(_account(), _login(uri))


def account_at_host() -> str:
    """Account and machine of this process, as people write them: `kim@node3`."""
    return f"{_account()}@{socket.gethostname()}"


def submitter() -> str | None:
    """Who submitted the Ray job that this process is, as `account_at_host`; None outside one."""
    return os.environ.get(SUBMITTER) or None


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container user without a passwd entry
        return "unknown"


def _login(uri: str) -> str:
    try:
        in_address = urlsplit(uri).username
    except ValueError:
        in_address = None
    if in_address:
        return unquote(in_address)
    if not uri.startswith(("http://", "https://")):  # a database file asks for no login
        return ""
    from mlflow.utils.credentials import read_mlflow_creds

    try:
        return read_mlflow_creds().username or ""
    except Exception:  # an unreadable credentials file is reported when the server is asked
        return ""
