"""One request to a device through the system's ssh, and what is wrong when there is no answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from vlkd_runtime.errors import ConfigError, UnavailableError

from .agent import MARK

# One line, because not every login shell lets a quoted word run over several; no backslash, no dollar, no backquote
# and no exclamation mark, which shells read differently. The working folder is taken off the path first: a file
# there must not pass for a module. Old Pythons get as far as saying that they are old.
BOOT = (
    'import sys; sys.path[:] = [p for p in sys.path if p]; b = getattr(sys.stdin, "buffer", sys.stdin); '
    'sys.version_info[:2] >= (3, 10) or sys.exit("vlkd-edge: old %d.%d" % sys.version_info[:2]); '
    'exec(compile(b.read(int(b.readline())), "agent", "exec"))'
)
SSH_FAILED = 255
NOT_FOUND = (126, 127)
# From here on a shell's exit code tells of a signal.
KILLED = 128
# What ssh says on its standard error, and what it means.
REASONS = (
    (
        r"could not resolve hostname",
        "no host of that name: check the name, or give it an address in ~/.ssh/config",
    ),
    (
        r"host key verification failed|remote host identification has changed",
        "a host key that is not known: log in once by hand with 'ssh {host}' and compare it",
    ),
    (
        r"permission denied|too many authentication failures",
        "that it refuses the login: run 'ssh-copy-id {host}', or name the key with --ssh-option IdentityFile=KEY",
    ),
    (
        r"connection refused",
        "nothing that listens: is sshd running there, and is it the right port (--ssh-option Port=N)?",
    ),
    (r"timed out|no route to host|network is unreachable", "no answer: is the device on, and in reach?"),
)


class DroppedError(Exception):
    """The connection ended before the answer was complete."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a device is reached.

    Attributes:
        host: ``user@host``, or a name of ssh's configuration.
        python: The device's Python.
        options: ``Name=value`` of ssh_config, for example ``Port=2222``.
    """

    host: str
    python: str = "python3"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s\x00-\x1f\-][^\s\x00-\x1f]*", self.host):
            msg = f"--on: expected user@host or a host of ssh's configuration, found {self.host!r}."
            raise ConfigError(msg)
        for option in self.options:
            if not re.fullmatch(r"[A-Za-z]+[= ].+", option):
                msg = f"--ssh-option: expected Name=value as in ssh_config, such as Port=2222, found {option!r}."
                raise ConfigError(msg)

    @property
    def name(self) -> str:
        """The host without the user."""
        return self.host.rpartition("@")[2]


class Connection:
    """Asks a device's agent; every request is an ssh of its own, over one shared login where ssh can.

    Args:
        way: How the device is reached.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._ssh = shutil.which("ssh")
        self._program = Path(__file__).with_name("agent.py").read_bytes()
        self._folder = contextlib.ExitStack()
        self._sockets = ""
        self.met = False

    def __enter__(self) -> Connection:
        if self._ssh is None:
            msg = (
                "Expected the program ssh, found none: install OpenSSH's client (apt install openssh-client)."
            )
            raise UnavailableError(msg)
        # Sockets have short paths at most, so the shared login's lies in the system's folder for such things.
        self._sockets = self._folder.enter_context(tempfile.TemporaryDirectory(prefix="vlkd-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*self._options(), "-O", "exit", "--", self._way.host],
                capture_output=True,
                timeout=5,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        self._folder.close()

    def ask(
        self,
        action: str,
        request: Mapping[str, Any] | None = None,
        *,
        body: Callable[[IO[bytes]], None] | None = None,
        hear: Callable[[dict[str, Any]], None] = lambda _: None,
        silence_s: float | None = None,
    ) -> dict[str, Any]:
        """Let the agent do one thing and return the last line of its answer.

        Args:
            action: What to do.
            request: What it needs.
            body: Writes the bytes that belong to the request.
            hear: Called with each line as it comes.
            silence_s: Without a word for this long, the connection counts as dropped.

        Raises:
            DroppedError: The connection ended before the answer was complete.
            UnavailableError: The device cannot be reached, has no usable Python, or refused.
        """
        head = f"{len(self._program)}\n".encode() + self._program
        head += json.dumps({"action": action, **(request or {})}).encode() + b"\n"
        last: dict[str, Any] = {}
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                self._words(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
            )
            assert process.stdin is not None and process.stdout is not None
            sender = threading.Thread(target=_send, args=(process.stdin, head, body), daemon=True)
            sender.start()
            try:
                for line in _lines(process.stdout, silence_s):
                    if line.startswith(MARK.encode()):
                        last = json.loads(line[len(MARK) :])
                        self.met = True
                        hear(last)
                process.wait()
            finally:
                process.kill()
                process.wait()
                sender.join()
                process.stdout.close()
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip()
        if "error" in last:
            _refused(self._way, last["error"])
        if process.returncode != 0 or not last:
            self._explain(process.returncode, said)
        return last

    def _words(self) -> list[str]:
        """Return ssh's command line."""
        remote = f"{shlex.quote(self._way.python)} -c {shlex.quote(BOOT)}"
        return [*self._options(), "-T", "--", self._way.host, remote]

    def _options(self) -> list[str]:
        """Return ssh and its options; what the user asks for comes first, because ssh takes the first it finds."""
        batch = "no" if sys.stdin is not None and sys.stdin.isatty() else "yes"
        ours = (
            *(f"BatchMode={batch}", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
            *("ControlMaster=auto", "ControlPersist=30", f"ControlPath={self._sockets}/%C"),
            *("ForwardX11=no", "ForwardAgent=no", "LogLevel=ERROR"),
        )
        options = [word for option in (*self._way.options, *ours) for word in ("-o", option)]
        assert self._ssh is not None
        return [self._ssh, *options]

    def _explain(self, code: int, said: str) -> None:
        way, last = self._way, (said.splitlines() or [f"exit code {code}"])[-1]
        old = re.search(r"vlkd-edge: old (\d+\.\d+)", said)
        if old:
            msg = (
                f"Expected Python 3.10 or later on {way.name}, found {old[1]}: name another with --python, for "
                "example that of a virtual environment."
            )
            raise UnavailableError(msg)
        if code in NOT_FOUND and not self.met:
            msg = f"Expected '{way.python}' on {way.name}, found: {last}. Install it, or name a Python with --python."
            raise UnavailableError(msg)
        if code == SSH_FAILED and not self.met:
            for pattern, meaning in REASONS:
                if re.search(pattern, said, re.IGNORECASE):
                    msg = f"Expected to log in to {way.host} over ssh, found {meaning.format(host=way.host)} ({last})"
                    raise UnavailableError(msg)
            msg = f"Expected to log in to {way.host} over ssh, found: {last}. Try 'ssh {way.host}' by hand."
            raise UnavailableError(msg)
        if 0 < code < KILLED:
            msg = f"Expected '{way.python}' on {way.name} to answer, found: {last}. Is it a Python?"
            raise UnavailableError(msg)
        raise DroppedError(last if said else "it fell silent")


def _send(pipe: IO[bytes], head: bytes, body: Callable[[IO[bytes]], None] | None) -> None:
    # A pipe that breaks is told by what the other side said, or did not say.
    with contextlib.suppress(OSError):
        pipe.write(head)
        if body is not None:
            body(pipe)
    with contextlib.suppress(OSError):
        pipe.close()


def _lines(pipe: IO[bytes], silence_s: float | None) -> Iterator[bytes]:
    """Give whole lines as they come, until the end or until nothing has come for a while."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(silence_s):
            block = os.read(pipe.fileno(), 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines


def _refused(way: Way, error: Mapping[str, str]) -> None:
    hints = {
        "full": "the disk is full: free space there, or remove what earlier benches left with --clean",
        "CacheError": "set VLKD_CACHE there to a folder of your own",
    }
    hint = hints.get(error["kind"], "see what is there, and try again")
    msg = f"Expected {way.name} to do its part, found: {error['text']}; {hint}."
    raise UnavailableError(msg)
