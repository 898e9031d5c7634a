"""Find doubles: videos that show the same, encoded anew, resized, cropped, trimmed, with a logo, or at another speed.

Candidates are alike as a whole. Of these, the frames are compared in the order of time: one picture that two videos
share (a title, a black frame, a room) proves nothing, and what the whole collection has in common is subtracted.

Shapes: N clips, D joint width, S slots of time, P pairs, M maps of time.
"""

from collections import Counter, defaultdict
from functools import cache

import numpy as np

from suma.index.storage import Row, State
from suma.model.vocabulary import unit

SLOTS = 12  # moments that are compared, evenly spaced in a clip
NEIGHBOURS = 20  # candidates of a clip, at most
ALIKE = 0.6  # cosine of two whole clips from which they are candidates
SAME = 0.58  # likeness of their frames from which they are doubles
STILL = 0.03  # squared length of changes that are as good as none
LEAST_COMMON = 0.6  # share of the longer one's time that the shorter one shows
FEW = 4  # clips whose mean says little: of so many, half of it is subtracted
PARTS = 0.6  # share of each video's parts that have a double in the other, where videos are cut
BLOCK = 1024  # clips, or pairs, at once


@cache
def time_maps() -> np.ndarray:
    """Return weights (M, S * S), of sum 1, of the slots of two clips: each map takes the whole of one clip to a span of
    the other, or a span to one as long, by linear interpolation."""
    steps = np.arange(0, 1 - LEAST_COMMON + 1e-6, 0.05)
    whole = [(start, stop, 0.0, 1.0) for start in steps for stop in 1 - steps if stop - start > LEAST_COMMON - 1e-6]
    later = [(start, 1.0, 0.0, 1 - start) for start in steps]
    spans = [*whole, *later, *((c, d, a, b) for a, b, c, d in [*whole, *later])]
    share, maps = (np.arange(SLOTS) + 0.5) / SLOTS, []
    for a, b, c, d in spans:
        weights = np.zeros((SLOTS, SLOTS))
        at = [np.clip(SLOTS * (low + share * (high - low)) - 0.5, 0, SLOTS - 1) for low, high in ((a, b), (c, d))]
        for x, y in zip(*at, strict=True):
            for i, p in ((int(x), 1 - x % 1), (min(int(x) + 1, SLOTS - 1), x % 1)):
                for j, q in ((int(y), 1 - y % 1), (min(int(y) + 1, SLOTS - 1), y % 1)):
                    weights[i, j] += p * q
        maps.append(weights.ravel() / SLOTS)
    return np.unique(np.array(maps, np.float32), axis=0)


def candidates(vectors: np.ndarray) -> np.ndarray:
    """Return pairs (P, 2), the first below the second, of unit vectors (N, D) that are alike."""
    found = []
    for i in range(0, len(vectors), BLOCK):
        cosines = vectors[i : i + BLOCK] @ vectors[i:].T
        first, second = np.nonzero(cosines > ALIKE)
        later = second > first
        first, second = first[later], second[later]
        order = np.lexsort((-cosines[first, second], first))
        first, second = first[order], second[order]
        rank = np.arange(len(first)) - np.searchsorted(first, first)
        found.append(np.stack([first, second], 1)[rank < NEIGHBOURS] + i)
    return np.concatenate([np.zeros((0, 2), np.int64), *found])


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how surely pairs (P,) of clips show the same, by their unit frames (P, S, D): under the map of time that
    fits best, half the mean cosine of the frames, half that of what changes in them, since takes of one scene share the
    rest. Of what hardly changes only the frames count."""
    cosines = a @ b.swapaxes(1, 2)  # (P, S, S)
    maps = time_maps()
    fits = cosines.reshape(len(a), -1) @ maps.T
    frames, weights = fits.max(1), maps[fits.argmax(1)].reshape(cosines.shape)
    changes = cosines - cosines.mean(1, keepdims=True) - cosines.mean(2, keepdims=True)
    changes = ((changes + cosines.mean((1, 2), keepdims=True)) * weights).sum((1, 2))
    lengths = [np.square(x - x.mean(1, keepdims=True)).sum(2) for x in (a, b)]  # (P, S), squared
    scale = np.sqrt((lengths[0] * weights.sum(2)).sum(1) * (lengths[1] * weights.sum(1)).sum(1))
    return 0.5 * frames + 0.5 * (changes + STILL * frames) / (scale + STILL)


def compare(snapshot: State) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (P, 2) of positions of clips that are alike as a whole, the first below the second, and their
    likeness (P,)."""
    live = snapshot.live
    if len(live) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    whole = np.concatenate([_wide(snapshot.vectors(live[i : i + BLOCK])) for i in range(0, len(live), BLOCK)])
    shrunk = len(live) / (len(live) + FEW)
    pairs = candidates(unit(whole - shrunk * whole.mean(0)))
    mean, found = _mean_frame(snapshot) * shrunk, [np.zeros(0, np.float32)]
    for i in range(0, len(pairs), 16 * BLOCK):
        some, at = np.unique(pairs[i : i + 16 * BLOCK], return_inverse=True)
        parts = [_slots(snapshot, live[some[n : n + BLOCK]]) - mean for n in range(0, len(some), BLOCK)]
        slots = np.concatenate([unit(part).astype(np.float16) for part in parts])
        first, second = at.reshape(-1, 2).T
        for n in range(0, len(first), BLOCK):
            one, other = (slots[x[n : n + BLOCK]].astype(np.float32) for x in (first, second))
            found.append(likeness(one, other))
    return live[pairs], np.concatenate(found)


def groups(snapshot: State) -> list[list[Row]]:
    """Return the files of each group of doubles, copies among them, the longest and largest first."""
    table, seen, found = snapshot, set[str](), []
    copied = dict.fromkeys(row.digest for row in table.copies())
    for digests in [*group_contents(snapshot), *([digest] for digest in copied)]:
        files = [row for digest in digests if digest not in seen for row in table.files_of(digest)]
        seen.update(digests)
        if len(files) > 1:
            found.append(sorted(files, key=lambda row: (-row.duration, -row.size, row.path)))
    return sorted(found, key=lambda files: files[0].path)


def group_contents(snapshot: State) -> list[list[str]]:
    """Return the contents of each group of doubles. Long videos, which are cut, are doubles by most of their parts."""
    pairs, values = compare(snapshot)
    pairs = pairs[values >= SAME]
    digests = dict(zip(snapshot.live.tolist(), snapshot.digests(snapshot.live), strict=True)) if len(pairs) else {}
    parts, matched = Counter(digests.values()), defaultdict(set)
    for first, second in pairs.tolist():
        matched[digests[first], digests[second]].add(first)
        matched[digests[second], digests[first]].add(second)
    group = {digest: [digest] for digest in parts}
    for one, other in list(matched):
        enough = all(len(matched[x, y]) >= PARTS * parts[x] for x, y in ((one, other), (other, one)))
        if one != other and enough and group[one] is not group[other]:
            group[one] += group[other]
            group.update(dict.fromkeys(group[other], group[one]))
    return [list(members) for digest, members in group.items() if len(members) > 1 and members[0] == digest]


def _wide(features: np.ndarray) -> np.ndarray:
    return unit(features.astype(np.float32))


def _mean_frame(snapshot: State) -> np.ndarray:
    """Return the mean (D,) of the unit frames of the clips; in a large index, of evenly spaced ones."""
    chosen = snapshot.live[:: max(1, len(snapshot.live) // BLOCK)][:BLOCK]
    return _slots(snapshot, chosen).mean((0, 1))


def _slots(snapshot: State, positions: np.ndarray) -> np.ndarray:
    """Return the unit frames (n, S, D) of clips at evenly spaced moments."""
    features, _, valid = snapshot.gather(positions)
    count = valid.sum(1) - 1  # frames
    at = 1 + ((np.arange(SLOTS) + 0.5) / SLOTS * count[:, None]).astype(np.int64)  # the video's feature stands first
    return _wide(np.take_along_axis(features, at[:, :, None], 1))
