"""The first stage: exact where all is compared, nearly so behind a quantiser; never a clip that may not be found."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_store import Row

from suma.index import first_stage
from suma.index.first_stage import Candidates, Codes, keep_cache
from suma.index.storage import NewClip
from suma.index.store import Store

WIDTH = 64
SPECTRUM = np.arange(1, WIDTH + 1) ** -0.5  # as features have it; noise without any is no case for a quantiser


def made(folder: Path, count: int) -> Store:
    store = Store.create(folder, "model", WIDTH // 2)
    add(store, 0, count)
    return store


def add(store: Store, start: int, count: int) -> None:
    random = np.random.default_rng(start)
    vectors = (random.normal(size=(count, WIDTH)) * SPECTRUM).astype(np.float16)
    files = [Row(f"/v/{start + n}.mp4", n, 1.0, f"d{start + n}", 3.0) for n in range(count)]
    nothing, one = np.zeros((2, WIDTH // 2)), np.ones(2)
    clips = [NewClip(f.digest, 0.0, 3.0, [1.0], nothing, v, one) for f, v in zip(files, vectors, strict=True)]
    store.commit(files, clips)


def best(store: Store, query: np.ndarray, number: int, allowed: np.ndarray | None = None) -> list[int]:
    """By comparing everything."""
    chosen = store.snapshot.live if allowed is None else allowed
    scores = store.snapshot.folded[chosen].astype(np.float32) @ query
    return chosen[np.argsort(-scores)[:number]].tolist()


@pytest.fixture(scope="module")
def three_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index to be copied, with its cache, so that the codes are learnt once."""
    folder = tmp_path_factory.mktemp("candidates") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_stage, "EXACT_LIMIT", 1000)
        patch.setattr(first_stage, "BLOCK", 500)
        keep_cache(made(folder, 3000))
    return folder


@pytest.fixture(params=["exact", "quantised"])
def store(request: pytest.FixtureRequest, three_thousand: Path, tmp_path: Path, monkeypatch) -> Store:
    monkeypatch.setattr(first_stage, "EXACT_LIMIT", 100_000 if request.param == "exact" else 1000)
    monkeypatch.setattr(first_stage, "BLOCK", 500)
    return Store.open(shutil.copytree(three_thousand, tmp_path / "index"), "model", WIDTH // 2)


def queries() -> np.ndarray:
    return (np.random.default_rng(99).normal(size=(20, WIDTH)) * SPECTRUM).astype(np.float32)


def overlap(store: Store, first: Candidates, allowed: np.ndarray | None = None) -> float:
    found = [set(first.search(store, store.snapshot, q, 10, allowed)) for q in queries()]
    true = [set(best(store, q, 10, allowed)) for q in queries()]
    return float(np.mean([len(f & t) / len(t) for f, t in zip(found, true, strict=True)]))


def test_it_finds_what_comparing_everything_finds(store: Store):
    assert overlap(store, Candidates()) >= 0.99
    for query in queries():
        assert Candidates().search(store, store.snapshot, query, 3)[0] == best(store, query, 1)[0]


def test_it_takes_in_what_is_added_and_leaves_out_what_is_removed(store: Store):
    first = Candidates()
    assert overlap(store, first) >= 0.99
    add(store, 3000, 700)
    assert overlap(store, first) >= 0.99
    gone = sorted({p for q in queries() for p in best(store, q, 3)})
    store.commit(forget=[row.path for row in store.snapshot.rows(gone)])
    assert overlap(store, first) >= 0.99
    assert not set(gone) & {p for q in queries() for p in first.search(store, store.snapshot, q, 50)}


def test_only_among_the_allowed(store: Store):
    for size in (0, 1, 40, 499, 1800):
        allowed = np.sort(np.random.default_rng(1).choice(3000, size, replace=False))
        first = Candidates()
        for query in queries():
            found = first.search(store, store.snapshot, query, 10, allowed)
            assert set(found) <= set(allowed.tolist()) and len(found) == min(10, size)
        if size:
            assert overlap(store, first, allowed) >= 0.98


def test_among_allowed_ones_that_are_far_from_the_query_the_best_is_found(store: Store):
    first = Candidates()
    for query in queries():
        far = np.sort(np.argsort(store.snapshot.folded.astype(np.float32) @ query)[:1500])
        found, true = first.search(store, store.snapshot, query, 10, far), best(store, query, 10, far)
        assert len(set(found) & set(true)) >= 9


def test_several_threads_find_what_one_does(store: Store, monkeypatch: pytest.MonkeyPatch):
    import faiss

    monkeypatch.setattr(first_stage, "SHARD", 700)
    monkeypatch.setattr(first_stage, "SMALL", 0)
    one, several, threads = Candidates(), Candidates(), faiss.omp_get_max_threads()
    try:
        for size in (3000, 900):
            allowed = np.sort(np.random.default_rng(1).choice(3000, size, replace=False))
            for query in queries():
                faiss.omp_set_num_threads(1)
                expected = one.search(store, store.snapshot, query, 10, allowed)
                faiss.omp_set_num_threads(3)
                assert several.search(store, store.snapshot, query, 10, allowed) == expected
        add(store, 3000, 750)
        assert overlap(store, several) >= 0.99 and sum(shard.ntotal for shard in several._exact) in (750, 3750)
    finally:
        faiss.omp_set_num_threads(threads)


def test_who_asks_with_an_older_state_is_answered_from_it(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(first_stage, "SMALL", 0)
    first, before = Candidates(), store.snapshot
    first.search(store, before, queries()[0], 10)
    shards = list(first._exact)
    add(store, 3000, 900)
    for query in queries():
        first.search(store, store.snapshot, query, 10)
        got = first.search(store, before, query, 3000)
        assert max(got) < 3000 and (first._coarse is not None or len(got) == 3000)
        assert got[:1] == [int(np.argmax(before.folded.astype(np.float32) @ query))]
    assert [shard.ntotal for shard in shards] == ([] if first._coarse else [3000])  # not changed under who reads it


def test_the_cache_is_used_while_it_is_whole_and_holds_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(first_stage, "EXACT_LIMIT", 1000)
    store = made(tmp_path / "index", 2000)
    keep_cache(store)
    (cache,) = store.folder.glob("first-*.faiss")
    made_anew: list[int] = []
    real = Codes.of
    monkeypatch.setattr(Codes, "of", lambda vectors: made_anew.append(len(vectors)) or real(vectors))

    def answers() -> float:
        made_anew.clear()
        return overlap(store, Candidates())

    assert answers() >= 0.99 and made_anew == []
    add(store, 2000, 300)
    keep_cache(store)
    assert answers() >= 0.99 and made_anew == [] and cache.exists()
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 255
    cache.write_bytes(content)
    assert answers() >= 0.99 and made_anew == [2300]
    add(store, 2300, 700)
    keep_cache(store)
    assert [file.name.split("-")[2] for file in store.folder.glob("first-*.faiss")] == ["3000"]
    assert answers() >= 0.99 and made_anew == []


def test_the_codes_name_what_is_near_without_the_vectors(monkeypatch: pytest.MonkeyPatch):
    vectors = (np.random.default_rng(0).normal(size=(5000, WIDTH)) * SPECTRUM).astype(np.float16)
    monkeypatch.setattr(first_stage, "FIRST", 1000)
    made = Codes.from_bytes(Codes.of(vectors).to_bytes())
    assert len(made) == 5000 and made.bytes_each <= WIDTH  # half a byte for each direction, twice
    hits, allowed = [], np.arange(5000) % 3 > 0
    for query in queries():
        scores = vectors.astype(np.float32) @ query
        for permitted, share in ((None, 1.0), (allowed, 2 / 3)):
            chosen = np.flatnonzero(allowed) if permitted is not None else np.arange(5000)
            named = made.name(query, 20, 5000, permitted, share)
            assert len(named) == len(set(named)) == 400 / share and set(named) <= set(chosen)
            hits.append(len(set(named) & set(chosen[np.argsort(-scores[chosen])[:10]])) / 10)
    assert np.mean(hits) >= 0.99
    assert set(made.name(queries()[0], 20, 900)) <= set(range(900))
    assert len(made.name(queries()[0], 5000, 5000)) == 5000


def test_codes_of_another_version_are_no_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import faiss

    vectors = np.random.default_rng(0).normal(size=(700, WIDTH)).astype(np.float32)
    for kind in ("RR32,RaBitQfs", "Flat"):
        other = faiss.index_factory(WIDTH, kind, faiss.METRIC_INNER_PRODUCT)
        other.train(vectors)
        other.add(vectors)
        with pytest.raises(ValueError, match="other codes"):
            Codes.from_bytes(faiss.serialize_index(other).tobytes())
    monkeypatch.setattr(first_stage, "EXACT_LIMIT", 1000)
    store = made(tmp_path / "index", 2000)
    content = faiss.serialize_index(other).tobytes()
    name = f"first-{store.generation}-2000-{hashlib.sha256(content).hexdigest()[:32]}.faiss"
    (store.folder / name).write_bytes(content)
    assert overlap(store, Candidates()) >= 0.99
    keep_cache(store)
    assert not (store.folder / name).exists() and len(list(store.folder.glob("first-*.faiss"))) == 1


def test_every_subspace_of_the_first_code_has_its_share_of_the_variance():
    variances = np.arange(1, 65) ** -1.5
    order = first_stage._in_balance(variances, 4, 16)
    assert sorted(order) == list(range(64))
    products = np.log(variances[order]).reshape(16, 4).sum(1)
    in_a_row = np.log(variances).reshape(16, 4).sum(1)
    assert products.std() < 0.2 * in_a_row.std()
    few = first_stage._in_balance(variances, 1, 16)  # the first ones where not all are taken
    assert sorted(few) == list(range(16))


def test_the_codes_know_what_scores_are_lessened_by(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(20_000, WIDTH)) * SPECTRUM).astype(np.float16)
    monkeypatch.setattr(first_stage, "FIRST", 1000)
    made, hits = Codes.of(vectors), {True: [], False: []}
    for query in queries():
        scores = vectors.astype(np.float32) @ query
        less = (scores.std() * random.normal(size=20_000)).astype(np.float32)
        best = set(np.argsort(less - scores)[:50])
        for known, found in hits.items():
            named = made.name(query, 50, 20_000, None, 1.0, less if known else None)
            found.append(len(best & set(named)) / 50)
    assert np.mean(hits[False]) < 0.6 and np.mean(hits[True]) > 0.9
