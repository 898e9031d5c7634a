"""Embedded engines on the folded vectors, each as its makers' quick start has it, exact where it can be. Those that are
not installed are left out: `pip install qdrant-client lancedb pymilvus milvus-lite`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Search = Callable[[np.ndarray], list[int]]


def qdrant(vectors: np.ndarray, folder: Path) -> Search:
    """Qdrant's local mode, in memory."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("videos", vectors_config=size)
    client.upload_collection("videos", vectors=vectors, ids=range(len(vectors)))
    return lambda query: [int(p.id) for p in client.query_points("videos", query=query.tolist(), limit=10).points]


def lance(vectors: np.ndarray, folder: Path) -> Search:
    """LanceDB, without an index."""
    import lancedb
    import pyarrow as pa

    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    rows = pa.table({"id": np.arange(len(vectors)), "vector": lists})
    table = lancedb.connect(folder / "lance").create_table("videos", rows)

    def search(query: np.ndarray) -> list[int]:
        return (
            table.search(query).distance_type("dot").select(["id", "_distance"]).limit(10).to_arrow()["id"].to_pylist()
        )

    return search


def milvus(vectors: np.ndarray, folder: Path) -> Search:
    """Milvus Lite."""
    from pymilvus import MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    client.create_collection("videos", dimension=vectors.shape[1], metric_type="IP")
    for start in range(0, len(vectors), 1000):
        block = vectors[start : start + 1000]
        client.insert("videos", [{"id": start + n, "vector": vector} for n, vector in enumerate(block)])
    return lambda query: [int(hit["id"]) for hit in client.search("videos", data=[query.tolist()], limit=10)[0]]


PEERS = {"Qdrant local": qdrant, "LanceDB": lance, "Milvus Lite": milvus}
