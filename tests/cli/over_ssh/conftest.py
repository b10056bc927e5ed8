"""Devices, bundles and images for benches over ssh."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tinymodel import NAMES, tiny_bundle
from vlkd_bench.benchrun import Plan
from vlkd_edge.benching import Request, bench
from vlkd_edge.progress import Live

sys.path.insert(0, str(Path(__file__).parent))
from ssh_devices import FAKE, Device, executable, wait_for


@pytest.fixture
def fake(tmp_path: Path) -> Device:
    """A program called ssh that runs commands in a home of its own."""
    (tmp_path / "home").mkdir()
    executable(tmp_path / "bin/ssh", FAKE.format(python=sys.executable, here=str(tmp_path)))
    return Device(tmp_path / "home", "me@device", (), str(tmp_path / "bin"), tmp_path / "stub")


@pytest.fixture
def device(fake: Device, answer: dict[str, Any]) -> Device:
    """The same with stubs that end at once."""
    fake.stub.mkdir()
    fake.pretend(answer)
    fake.open_gate()
    return fake


@pytest.fixture(scope="session")
def answer(odd: Path) -> dict[str, Any]:
    """What a run leaves, measured once for all stubs."""
    plan = Plan(odd, samples=10, processes=1, throughput=False, power=False)
    found, _ = bench(Request(plan), Live(Console(stderr=True)))
    return {"records": [found.to_record().to_json()]}


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose name means something to shells."""
    return tiny_bundle(tmp_path_factory.mktemp("odd") / 'it\'s a "bundle"; $(touch x) `y` & 100%')


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data") / "my 'images'", np.random.default_rng(0)
    for domain in ("photo", "sketch", "not asked for"):
        for name in NAMES:
            (root / domain / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"a {i}.png")
    return root


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Device]:
    """This machine under a port, a key and a cache of its own."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd, ssh or ssh-keygen here: apt install openssh-server openssh-client")
    separation = Path("/run/sshd")
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir(mode=0o755)
    for name in ("host_key", "key", "stranger"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(keygen, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "authorized").write_text((tmp_path / "key.pub").read_text())
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host_key.pub').read_text()}")
    (tmp_path / "home/.cache/vlkd-edge").mkdir(parents=True, mode=0o700)
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host_key", "PidFile": "none",
        "AuthorizedKeysFile": tmp_path / "authorized", "StrictModes": "no", "UsePAM": "no",
        "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "PermitRootLogin": "yes",
        "SetEnv": f"VLKD_CACHE={tmp_path / 'home/.cache/vlkd-edge'}",
    }  # fmt: skip
    (tmp_path / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with (tmp_path / "sshd.log").open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log)
    options = (f"Port={port}", f"IdentityFile={tmp_path / 'key'}", "IdentitiesOnly=yes",
               f"UserKnownHostsFile={tmp_path / 'known'}", "StrictHostKeyChecking=yes")  # fmt: skip
    words = tuple(word for option in options for word in ("--ssh-option", option))
    user = pwd.getpwuid(os.geteuid()).pw_name

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(lambda: listens() or server.poll() is not None, 30)
        assert server.poll() is None, (tmp_path / "sshd.log").read_text()
        (tmp_path / "server.pid").write_text(str(server.pid))
        yield Device(tmp_path / "home", f"{user}@127.0.0.1", words, str(tmp_path / "bin"), tmp_path / "stub")
    finally:
        server.terminate()
        server.wait(30)
        if made:
            separation.rmdir()
