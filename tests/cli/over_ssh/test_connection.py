"""What keeps ssh or the device from doing its part is said with what to do about it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlkd_edge.over_ssh import agent, parcels, session
from vlkd_edge.over_ssh.connection import Connection, Way
from vlkd_edge.progress import Live
from vlkd_runtime.errors import ConfigError, UnavailableError

sys.path.insert(0, str(Path(__file__).parent))
from ssh_devices import Device, executable


def complaint(text: str, code: int) -> str:
    return f"#!/bin/sh\ncat > /dev/null\necho {text!r} >&2\nexit {code}\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(
            complaint("ssh: Could not resolve hostname device: Name or service not known", 255),
            "no host of that name",
            id="host",
        ),
        pytest.param(complaint("me@device: Permission denied (publickey).", 255), "ssh-copy-id me@device", id="key"),
        pytest.param(complaint("Host key verification failed.", 255), "log in once by hand", id="host key"),
        pytest.param(
            complaint("ssh: connect to host device port 22: Connection refused", 255), "Port=N", id="refused"
        ),
        pytest.param(complaint("Connection timed out", 255), "is the device on", id="timeout"),
        pytest.param(complaint("kex_exchange_identification", 255), "Try 'ssh me@device' by hand", id="other"),
        pytest.param(complaint("sh: 1: python3: not found", 127), "name a Python with --python", id="no Python"),
        pytest.param(complaint("vlkd-edge: old 3.8", 1), "Python 3.10 or later on device, found 3.8", id="old"),
        pytest.param(complaint("Segmentation fault", 1), "Is it a Python", id="no answer"),
    ],
)  # fmt: skip
def test_what_keeps_from_beginning_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    executable(tmp_path / "ssh", script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with Connection(Way("me@device")) as connection, pytest.raises(UnavailableError, match=message):
        connection.ask("look")


@pytest.mark.parametrize(
    ("file", "instead", "message"),
    [
        pytest.param("key", "stranger", "ssh-copy-id", id="key"),
        pytest.param("known", "unknown", "log in once by hand", id="host key"),
    ],
)
def test_over_sshd_what_ssh_refuses_is_said(
    sshd: Device,
    tmp_path: Path,
    file: str,
    instead: str,
    message: str,
) -> None:
    options = sshd.options[1::2]
    changed = tuple(option.replace(f"{tmp_path}/{file}", f"{tmp_path}/{instead}") for option in options)
    way = Way(sshd.host, options=changed)
    with Connection(way) as connection, pytest.raises(UnavailableError, match=message):
        connection.ask("look")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param(
            {"missing": ["a.py"], "path": "/x", "free_bytes": 1_000_000},
            "Expected 67 MB free on device for the code, found 1: the disk is full",
            id="before",
        ),
        pytest.param(
            {"error": {"kind": "full", "text": "/x/a.py: No space left on device"}},
            "No space left on device; the disk is full: free space there",
            id="while",
        ),
        pytest.param(
            {"error": {"kind": "CacheError", "text": "/x: expected a folder"}}, "set VLKD_CACHE there", id="cache"
        ),
    ],
)  # fmt: skip
def test_a_full_disk_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: dict[str, Any], message: str
) -> None:
    (tmp_path / "reply").write_text(agent.MARK + json.dumps(reply) + "\n")
    executable(tmp_path / "ssh", f"#!/bin/sh\ncat > /dev/null\ncat '{tmp_path}/reply'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.py").write_text("")
    remote, show = session.Remote(Way("device")), Live(Console(stderr=True))
    with Connection(remote.way) as connection, pytest.raises(UnavailableError, match=message):
        session.Session(connection, remote, show, print).copy(
            parcels.pack("code", "", [("a.py", tmp_path / "a.py")])
        )


def test_without_ssh_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="apt install openssh-client"), Connection(Way("device")):
        pass


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "", "a b", "a\nb"])
def test_hosts_that_ssh_could_take_for_options_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="expected user@host"):
        Way(host)


def test_options_are_names_with_values() -> None:
    with pytest.raises(ConfigError, match="Port=2222"):
        Way("device", options=("-p 2222",))
