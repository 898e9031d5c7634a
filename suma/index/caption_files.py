"""Read captions from the files that people have: text, JSON, JSON lines or CSV, in UTF-8 or UTF-16."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

CAPTION = ("caption", "captions", "text", "sentence")  # keys of a row, the first one that it has
VIDEO = ("video", "video_id", "file_name", "file", "path")
HALVES = re.compile("[\ud800-\udfff]")  # of characters that JSON writes as two \u escapes: what a cut leaves


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
