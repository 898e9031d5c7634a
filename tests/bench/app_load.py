"""Many people at once: real HTTP clients against `python app.py`, every answer checked.

    python tests/bench/app_load.py --clients 32 --searches 1000

Prints errors, answers that were another client's, latencies and the server's memory. Each client asks its own queries,
waits (`--pause` seconds on average) and asks again; 0 asks without a pause, which measures throughput.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
THINGS = ["crab", "elephant", "dragon", "owl", "rooster", "clock", "ghost", "pizza", "guitar", "penguin", "bee", "car"]
PLACES = [
    "on the beach",
    "in the forest",
    "at night",
    "on the road",
    "under water",
    "in a room",
    "in the snow",
    "in town",
]


@contextmanager
def running_app(*arguments: str) -> Iterator[tuple[str, int]]:
    """`python app.py` on a free port: its address and process id. Stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--read-only", "--port", str(port), *arguments]
    env = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    app = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if app.poll() is not None:
                raise RuntimeError(f"the app ended with code {app.returncode}")
            try:
                if httpx.get(url).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url, app.pid
    finally:
        app.terminate()
        app.wait(20)


def search(http: httpx.Client, url: str, query: str, top_k: int = 5) -> list[dict[str, Any]]:
    """One search by the public endpoint. Raises RuntimeError for anything but an answer."""
    call = http.post(f"{url}/gradio_api/call/search", json={"data": [query, top_k, None, 0, False, 0.0]})
    if call.status_code != 200:
        raise RuntimeError(f"{call.status_code} {call.text[:200]}")
    event = ""
    with http.stream("GET", f"{url}/gradio_api/call/search/{call.json()['event_id']}") as lines:
        for line in lines.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            if line.startswith("data: ") and event == "complete":
                return json.loads(line.removeprefix("data: "))[0]
            if line.startswith("data: ") and event == "error":
                raise RuntimeError(line)
    raise RuntimeError("the answer ended early")


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@dataclass
class Outcome:
    """What happened."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    mixed: int = 0  # answers to another query
    memory: list[float] = field(default_factory=list)  # MB, after each tenth of the searches
    wall: float = 0.0

    @property
    def p95(self) -> float:
        """Milliseconds that 95 % of the searches took at most."""
        return 1000 * statistics.quantiles(self.seconds, n=20)[-1]


def load(url: str, pid: int, clients: int, searches: int, pause: float) -> Outcome:
    """`searches` in all by `clients` threads, each with a connection of its own."""
    queries = [f"a {thing} {place}" for thing in THINGS for place in PLACES]
    with httpx.Client(timeout=60) as http:
        expected = {query: search(http, url, query) for query in queries}
    outcome, lock, left = Outcome(memory=[megabytes(pid)]), threading.Lock(), iter(range(searches))

    def client(number: int) -> None:
        choose = random.Random(number)
        with httpx.Client(timeout=60) as http:
            time.sleep(choose.uniform(0, 2 * pause))
            while True:
                with lock:
                    at = next(left, None)
                if at is None:
                    return
                query = choose.choice(queries)
                began = time.perf_counter()
                try:
                    found = search(http, url, query)
                except (RuntimeError, httpx.HTTPError) as error:
                    with lock:
                        outcome.errors.append(f"{query}: {error!r}")
                    continue
                took = time.perf_counter() - began
                with lock:
                    outcome.seconds.append(took)
                    outcome.mixed += found != expected[query]
                    if at % max(1, searches // 10) == 0:
                        outcome.memory.append(megabytes(pid))
                time.sleep(choose.uniform(0, 2 * pause))

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.wall = time.perf_counter() - began
    outcome.memory.append(megabytes(pid))
    return outcome


def main() -> int:
    """Run and print; exit code 1 where an answer was wrong or missing."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=32)
    p.add_argument("--searches", type=int, default=1000)
    p.add_argument("--pause", type=float, default=2.0, help="seconds between a client's searches, on average")
    args = p.parse_args()
    with running_app() as (url, pid):
        o = load(url, pid, args.clients, args.searches, args.pause)
    ms = sorted(1000 * s for s in o.seconds)
    print(
        f"{args.clients} clients, {len(ms)} searches in {o.wall:.1f} s ({len(ms) / o.wall:.1f} per second), "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(f"errors {len(o.errors)}, mixed-up answers {o.mixed}")
    print(f"p50 {statistics.median(ms):.0f} ms, p95 {o.p95:.0f} ms, longest {ms[-1]:.0f} ms")
    print(f"memory {' '.join(f'{m:.0f}' for m in o.memory)} MB")
    return 1 if o.errors or o.mixed else 0


if __name__ == "__main__":
    sys.exit(main())
