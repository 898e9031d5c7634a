"""The captions that a video is given: read from the files that people have (text, JSON, JSON lines or CSV, in UTF-8 or
UTF-16), kept with their folded vectors, and searched in two stages like videos.

Shapes: N lines, V parts of a video, F frames, D joint width.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from suma.index.first_stage import Candidates, keep_cache
from suma.index.scoring import Clips, Scorer
from suma.index.storage import AnyStore
from suma.model.vocabulary import nfc, unit

CAPTION = ("caption", "captions", "text", "sentence")  # keys of a row, the first one that it has
VIDEO = ("video", "video_id", "file_name", "file", "path")
HALVES = re.compile("[\ud800-\udfff]")  # of characters that JSON writes as two \u escapes: what a cut leaves
Fold: TypeAlias = Callable[[Sequence[str]], np.ndarray]  # sentences -> folded vectors (n, 2D)
CANDIDATES = 700  # lines of the folded first stage that are scored exactly: few, and much alike
BATCH, BLOCK = 256, 4096  # lines encoded or scored at once, and written at once
SHOWN = 2000  # lines from which on a bar shows how far their encoding is


def read_text(file: Path) -> str:
    """Return a file's text, without its byte order mark. Raise ValueError with the line that is no text."""
    data = file.read_bytes()
    encoding = json.detect_encoding(data)  # by the mark, or by where the first zeros are: not of JSON alone
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].decode(encoding, "ignore").count("\n")
        raise ValueError(
            f"{file}, line {line}: no {encoding.removesuffix('-sig').upper()} text: save the file as UTF-8"
        ) from None


def read_captions(file: Path) -> dict[str, list[str]]:
    """Return captions by video: of a text file, one on each line, and of lists without videos, all are those of "".

    Read are also a JSON object {video: captions}, a JSON list, JSON lines, and CSV or TSV with a head: each entry is a
    caption, or a row with a caption and perhaps a video. Null and empty captions are left out, and halves of characters
    are. Raise ValueError naming the file and the line or entry that is none of this.
    """
    text, kind = read_text(file), file.suffix.lower()
    found: dict[str, list[str]] = {}
    if kind in (".csv", ".tsv"):
        entries: list[tuple[str, Any]] = _rows(file, text)
    elif kind in (".json", ".jsonl", ".ndjson"):
        entries = _values(file, text)
    else:
        entries = [("", line) for line in text.splitlines()]
    for where, entry in entries:
        for video, captions in _by_video(entry, f"{file}{where}"):
            for caption in captions if isinstance(captions, list) else [captions]:
                if not isinstance(caption, str | None):
                    raise ValueError(f"{file}{where}{f', {video}' * bool(video)}: {caption!r:.60} is no caption")
                if kept := HALVES.sub("", caption or "").strip():
                    found.setdefault(video, []).append(kept)
    return found


def _rows(file: Path, text: str) -> list[tuple[str, Any]]:
    """Return the rows of a CSV file, each with the line at which it ends."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    lines = io.StringIO(text, newline="")
    rows, entries = csv.DictReader(lines, delimiter=delimiter, strict=True, skipinitialspace=True), []
    try:
        if not {name.lower() for name in rows.fieldnames or ()} & set(CAPTION):
            raise ValueError(f"{file}, line 1: expected a head with a column caption, not {rows.fieldnames}")
        for row in rows:
            if None in row:
                raise ValueError(f"{file}, line {rows.line_num}: more cells than the head has: put captions in quotes")
            entries.append((f", line {rows.line_num}", row))
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.reader.line_num}: {error}") from None
    return entries


def _values(file: Path, text: str) -> list[tuple[str, Any]]:
    """Return the entries of a JSON file, or of JSON lines, each with where it is."""
    lines = [(f", line {n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        whole = json.loads(text)
        return [(f", entry {n}", x) for n, x in enumerate(whole, start=1)] if isinstance(whole, list) else [("", whole)]
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" and file.suffix.lower() == ".json":
            raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from None
    values = []
    for where, line in lines:
        try:
            values.append((where, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}{where}: {error.msg}") from None
    return values


def _by_video(entry: Any, where: str) -> list[tuple[str, Any]]:
    """Return the videos of one entry, each with its captions: one of a row or a bare caption, all of an object."""
    if not isinstance(entry, dict):
        return [("", entry)]
    row = {key.lower(): value for key, value in entry.items()}
    captions = [name for name in CAPTION if name in row]
    if not captions:
        return list(entry.items())
    video = next((row[name] for name in VIDEO if row.get(name)), "")
    if not isinstance(video, str | int):
        raise ValueError(f"{where}: {video!r:.60} is no name of a video")
    return [(str(video), row[captions[0]])]


class CaptionList:
    """A list of captions, each once. The vectors of a list that is kept in an index lie memory-mapped in its folder;
    those of a new one are made when they are first needed, or kept by `save`."""

    def __init__(self, lines: Sequence[str], folded: np.ndarray | None = None, first: int = 0):
        stripped = (line.strip() for line in lines)
        self.lines = list(lines if folded is not None else dict.fromkeys(nfc(line) for line in stripped if line))
        self.live = np.arange(len(self.lines))  # for Candidates, as `origin` and `folded` below
        self.name = f"lines{first}"  # of its cache; `first`: the commit that brought it
        self._folded = folded  # (N, 2D) float16
        self._candidates = Candidates(self.name)

    @classmethod
    def load(cls, store: AnyStore) -> "CaptionList":
        """The list of an index, as it is kept."""
        first, lines = store.captions()
        return cls(lines, store.caption_vectors(first, len(lines)), first)

    def save(self, store: AnyStore, scorer: Scorer, fold: Fold) -> "CaptionList":
        """Keep the list in an index's folder, encoding the lines that the one before has not; the list as it is kept.
        Raises OSError as the store does, with the one before intact."""
        if (before := CaptionList.load(store)).lines == self.lines:
            return before
        with store.writing():
            before = CaptionList.load(store)
            store.set_captions(
                self.lines, [self._folded] if self._folded is not None else self._blocks(scorer, fold, before)
            )
            kept = CaptionList.load(store)
            keep_cache(store, kept, kept.name)
        return kept

    def search(self, store: AnyStore, scorer: Scorer, fold: Fold, clips: Clips, top_k: int) -> list[tuple[str, float]]:
        """The lines that describe a video best, with their scores, best first; of several parts (V) the best counts."""
        if self._folded is None:
            self._folded = np.concatenate(list(self._blocks(scorer, fold)))
        number = max(CANDIDATES, 2 * top_k)
        found: dict[int, None] = {}
        for query in scorer.fold_videos(clips):
            found.update(dict.fromkeys(self._candidates.search(store, self, query, number)))
        positions, parts, dim = list(found), [], scorer.concepts.shape[1]
        for i in range(0, len(positions), BATCH):
            folded = self.folded[positions[i : i + BATCH]].astype(np.float32)
            folded[:, :dim] = unit(folded[:, :dim])
            parts.append(scorer.score(folded, clips).max(1))
        scores = np.concatenate(parts)  # (lines,)
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [(self.lines[positions[i]], round(float(scores[i]), 4)) for i in best]

    @property
    def origin(self) -> "CaptionList":
        """One list never changes."""
        return self

    @property
    def folded(self) -> np.ndarray:
        """(N, 2D) float16, once they are encoded."""
        assert self._folded is not None
        return self._folded

    def _blocks(self, scorer: Scorer, fold: Fold, before: "CaptionList | None" = None) -> Iterator[np.ndarray]:
        """The lines' vectors, in blocks (n, 2D); those of the list before are taken from there."""
        from suma.progress import Progress

        kept = before is not None and before._folded is not None
        known = {line: i for i, line in enumerate(before.lines)} if before is not None and kept else {}
        few = len(self.lines) < SHOWN
        with Progress(total=len(self.lines), desc="captions", unit="line", disable=few) as bar:
            for i in range(0, len(self.lines), BLOCK):
                lines = self.lines[i : i + BLOCK]
                block = np.empty((len(lines), 2 * scorer.concepts.shape[1]), np.float16)
                old = [n for n, line in enumerate(lines) if line in known]
                if before is not None and old:
                    block[old] = before.folded[[known[lines[n]] for n in old]]
                new = sorted((n for n, line in enumerate(lines) if line not in known), key=lambda n: len(lines[n]))
                for at in (new[k : k + BATCH] for k in range(0, len(new), BATCH)):  # of like length: less padding
                    block[at] = fold([lines[n] for n in at])
                bar.update(len(lines))
                yield block
