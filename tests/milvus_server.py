"""A real Milvus server for tests and benches: the standalone binary of the PyPI package `milvus`, over a folder.

It can be killed as a crash would kill it, and started again over the same data at the same port. It goes when this
process goes.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

LAUNCH = """
import os, socket, sys, threading, time
from milvus import MilvusServer, MilvusServerConfig

def try_bind_port(self, port):
    "As theirs, but takes a port whose last connections are still being closed."
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
        sock.listen()
    except OSError:
        sock.close()
        return None
    return sock

MilvusServerConfig.try_bind_port = try_bind_port

def watch():
    while True:
        time.sleep(0.2)
        if server.server_proc is not None and server.server_proc.poll() is not None:
            os._exit(1)

def leave():
    sys.stdin.read()
    server.stop()
    os._exit(0)

folder, port = sys.argv[1], int(sys.argv[2])
server = MilvusServer(data_dir=folder, **({"proxy_port": port} if port else {}))
for work in (watch, leave):
    threading.Thread(target=work, daemon=True).start()
server.start()  # returns when it is healthy
print(server.server_proc.pid, server.listen_port, flush=True)
threading.Event().wait()
"""


class MilvusServer:
    """One server over `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.pid = folder, 0, 0
        self._launcher: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> "MilvusServer":
        """Start it, or start it again. Raises RuntimeError, with what it said, where it does not come up."""
        self.stop()
        errors = (self.folder / "launcher.log").open("w")
        command = [sys.executable, "-c", LAUNCH, str(self.folder), str(self.port)]
        self._launcher = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=errors, text=True, start_new_session=True
        )
        errors.close()
        assert self._launcher.stdout is not None
        line = self._launcher.stdout.readline().split()
        if len(line) != 2:
            self.stop()
            logs = [self.folder / "launcher.log", *self.folder.glob("logs/milvus-std*.log")]
            lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
            said = [line[:200] for line in lines if "panic" in line or "Error" in line or "error=" in line]
            raise RuntimeError(f"the Milvus server did not start: {' '.join(said)[:600] or 'it said nothing'}")
        self.pid, self.port = int(line[0]), int(line[1])
        return self

    def kill(self) -> None:
        """End it as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End it."""
        if self._launcher is not None:
            assert self._launcher.stdin is not None and self._launcher.stdout is not None
            with contextlib.suppress(OSError):
                self._launcher.stdin.close()
            try:
                self._launcher.wait(20)
            except subprocess.TimeoutExpired:
                self._launcher.kill()
                self._launcher.wait()
            self._launcher.stdout.close()
            self._launcher = None
