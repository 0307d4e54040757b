"""A real sshd on this machine's loopback, with its own configuration, keys and port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

HOST = "kitchen"
"""What the client's configuration calls it."""


CLIENT_PATH = os.environ["PATH"]
"""Where the system's ssh is, before a test puts another before it."""


class Sshd:
    """A server; a context manager.

    Args:
        folder: Empty folder for its files. ``folder/cache`` is the user's cache behind it.
        environment: Variables of its sessions.

    Attributes:
        port: Where it listens.
        tools: Folder where its sessions look for programs first.
        path: Folder with an ``ssh`` that has a configuration of its own; to be put in ``PATH``.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.path = folder / "bin"
        self.path.mkdir(parents=True)
        self.tools = folder / "tools"
        self.tools.mkdir()
        self.port = free_port()
        for name in ("host", "user", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
            )
        shutil.copy(folder / "user.pub", folder / "authorized")
        variables = {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PATH": f"{self.tools}:{CLIENT_PATH}",
            **(environment or {}),
        }
        set_variables = " ".join(f'"{name}={value}"' for name, value in variables.items())
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPidFile none\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            f"SetEnv {set_variables}\n"
        )
        key = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known").write_text(f"{HOST} {key}\n")
        self.configure(self.port)

    def configure(self, port: int, key: str = "user", known: str = "known") -> None:
        """Write the client's configuration."""
        (self.folder / "ssh_config").write_text(
            f"Host {HOST}\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias {HOST}\n"
            f"  IdentityFile {self.folder}/{key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder}/{known}\n"
            "  LocalForward 127.0.0.1:1 127.0.0.1:2\n"
        )
        ssh = self.path / "ssh"
        program = shutil.which("ssh", path=CLIENT_PATH)
        ssh.write_text(f'#!/bin/sh\nexec {program} -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)

    def __enter__(self) -> Sshd:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own demand
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sshd_program(), "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


def sshd_program() -> str:
    """Path of sshd, empty if there is none: it must be called by its full name."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or ""


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
