"""What programs and language models can call: typed functions, JSON in and out. The page is built on the same ones."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from gradio.utils import get_upload_folder

from suma import Match, VideoIndex
from suma.app.errors import error_text, show_user_errors
from suma.app.filling import Progress, add_paths
from suma.app.gallery import Gallery
from suma.app.media import prepare, readable
from suma.app.space import on_gpu, zero_gpu
from suma.app.uploads import Uploads, keep_upload
from suma.explain import Explanation, explain
from suma.index.query import Query, parse
from suma.index.storage import Row
from suma.model.encoder import Queries
from suma.video.cut import save_clip

TOP, LARGEST_TOP = 12, 1000  # results: on the page, and at most in one call
MAX_QUERY = 2000  # characters that are read; the model itself reads fewer
MAX_LINES = 200  # captions of a visitor's own
LONGEST_CLIP = 120  # seconds
KEPT_TEXTS = 512  # queries whose encoding is kept


@dataclass
class Options:
    """What the operator of the app allows."""

    read_only: bool = True  # nobody adds or removes videos
    folders: list[Path] = field(default_factory=list)  # folders of the server that visitors may add
    library: Path | None = None  # where uploads to the gallery are kept; None: uploads are refused
    uploads: Uploads = field(default_factory=Uploads)
    make_copies: bool = False  # make copies for browsers when videos are added, not when one is first shown


def clean(text: str | None) -> str:
    """Return the part of a typed query that is read, with single spaces."""
    return " ".join((text or "").split())[:MAX_QUERY]


def read_query(text: str, weights: dict[str, float] | None = None) -> Query:
    """Return a typed query as it is meant, with the weights of concepts (word -> weight in [-1, 1]) added to its own.

    Raises ValueError for a query that cannot be read.
    """
    query = parse(clean(text))
    return replace(query, weights=tuple({**dict(query.weights), **(weights or {})}.items()))


class Api:
    """The seven functions over one index. They call a video by its name in the gallery."""

    def __init__(self, index: VideoIndex, options: Options | None = None):
        self.index, self.gallery, self.options = index, Gallery(index), options or Options()
        self._texts: OrderedDict[Query, Queries] = OrderedDict()  # encoded queries, the last used at the end
        if zero_gpu():
            for name in ("find", "find_similar", "why", "rank"):  # as bound methods: what they are given is plain data
                setattr(self, name, on_gpu(getattr(self, name)))

    @show_user_errors
    def search(
        self,
        query: str,
        top_k: int = TOP,
        weights: dict[str, float] | None = None,
        offset: int = 0,
        hide_doubles: bool = False,
        min_confidence: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Find the videos of the gallery that a text describes best, and the moment in each where it happens.

        Args:
            query: what happens in the video, in English, for example "a dog catches a ball". May be empty where
                weights are given. Words like +beach or -"two dogs" add or subtract what they say, dog^2 counts twice;
                longer:10 shorter:60 (seconds) after:2024-01-31 before:2024-03-01 in:holidays (a folder's name) and
                score:0.2 (the least) choose which videos may answer; in:"a.mp4" (a video's name) asks for its moments.
            top_k: how many videos to return, 1 to 1000.
            weights: optional steering of concepts: a word and its weight from -1 (ban what this word names) over 0
                (ignore it) to 1 (strengthen it), for example {"snow": -1, "ball": 0.8}.
            offset: how many of the best to leave out: 12 for the second page of 12.
            hide_doubles: of videos that show the same, return only the best.
            min_confidence: leave out what is less likely than that (0 to 1) to be right.

        Returns:
            A list, best first, of {video: its name, caption, score, moment: seconds of its best moment, span: the
            start and end of that moment, duration: seconds, confidence: how likely it is right, 0 to 1, calibrated:
            whether that was fitted to this model, fits: of the first, false where nothing in the gallery seems to fit,
            concepts: [{name, part: of the score}]}.
        """
        asked = read_query(_text(query), _weights(weights))
        how = {"hide_doubles": hide_doubles, "min_confidence": _number(min_confidence, "min_confidence", float)}
        return [self._json(match) for match in self.find(asked, top_k, _number(offset, "offset"), **how)]

    @show_user_errors
    def captions(
        self, video: str = "", file: str | None = None, top_k: int = 5, lines: str = ""
    ) -> list[dict[str, Any]]:
        """Rank captions by how well they describe a video: those of the gallery's list, or lines of your own.

        Args:
            video: the name of a video of the gallery (as /search returns it); "" where a file is given.
            file: a video file instead; it is deleted after the answer.
            top_k: how many captions to return.
            lines: optional captions of your own, one per line, at most 200.

        Returns:
            A list, best first, of {caption, score}.
        """
        with self._using(video, file) as path:
            return [{"caption": text, "score": score} for text, score in self.rank(path, _number(top_k), lines)]

    @show_user_errors
    def similar(self, video: str = "", file: str | None = None, top_k: int = 5) -> list[dict[str, Any]]:
        """Find the videos of the gallery that are most like a video.

        Args:
            video: the name of a video of the gallery (as /search returns it); "" where a file is given.
            file: a video file or an image instead; it is deleted after the answer.
            top_k: how many videos to return.

        Returns:
            A list, best first, of {video: its name, caption, score, moment: seconds, duration: seconds, concepts: []}.
        """
        with self._using(video, file) as path:
            return [self._json(match) for match in self.find_similar(path, _number(top_k))]

    @show_user_errors
    def explain(
        self,
        video: str,
        query: str = "",
        by: Literal["query", "video"] = "query",
        top_k: int = 8,
        weights: dict[str, float] | None = None,
    ) -> dict[str, Any]:
        """Say why a video of the gallery has its score for a query, in the model's own numbers.

        Args:
            video: the name of a video of the gallery (as /search returns it).
            query: the text it was found by, as /search was given it; "" to ask only what the model sees in the video.
            by: "query" for the concepts of the query that add most to the score, "video" for the concepts that stand
                out most in the video.
            top_k: how many concepts to return.
            weights: the steering that /search was given, if any.

        Returns:
            {video, query, score, shares: what each of the four similarities adds to the score, times: of the frames in
            seconds, frame_scores, duration, start and end (seconds): the part of a long video that answers best, moment
            and span: where in it, concepts: [{id, name, words, query_weight, activation, part: of the score, heat:
            activation in each frame}]}.
        """
        path, asked = self.gallery.row(video).path, read_query(_text(query), _weights(weights))
        found = asdict(self.why(path, clean(query), asked, by, _number(top_k)))
        return {"video": video, **{name: value for name, value in found.items() if name != "path"}}

    @show_user_errors
    def concepts(self, words: str = "", top_k: int = 20) -> list[dict[str, Any]]:
        """List the model's concepts (clusters of words), with how often and where they show in the gallery.

        Args:
            words: words to look for; "" lists the concepts that stand out most often in the gallery.
            top_k: how many concepts to return, 1 to 1000.

        Returns:
            A list of {id, name, words, frequency: share of the gallery's frames where it stands out (two standard
            deviations above its mean), best: [{video, moment: seconds}]}.
        """
        gallery, space = self.gallery, self.index.model.space
        return [
            {
                "id": k,
                "name": name,
                "words": space.members(k),
                "frequency": round(share, 5),
                "best": [{"video": gallery.name(r.path), "moment": r.times[f]} for r, f in gallery.concept_moments(k)],
            }
            for k, name, _, share in gallery.find_concepts(_text(words), _number(top_k))
        ]

    @show_user_errors
    def add(self, file: str | None = None) -> dict[str, Any]:
        """Add a video file to the gallery. Refused where the operator made the gallery read-only.

        Args:
            file: the video file.

        Returns:
            {added: [names], skipped: number that were there already, failed: {file name: reason}, videos: how many the
            gallery has now}.
        """
        if not file:
            raise ValueError("upload a video file")
        *_, last = self.add_files([file])
        return {"added": last.added, "skipped": last.skipped, "failed": last.failed, "videos": len(self.gallery.names)}

    @show_user_errors
    def clip(self, video: str, start: float, end: float) -> str:
        """Cut a stretch out of a video of the gallery, as an mp4 file with its sound.

        Args:
            video: the name of a video of the gallery (as /search returns it).
            start: where the clip begins, in seconds; it may begin up to half a second earlier.
            end: where it ends, in seconds, at most 120 later.

        Returns:
            The file; it is deleted after some hours.
        """
        return self.cut(self.gallery.row(_text(video)), start, end)

    # ---- what these functions and the page are made of ------------------------------------------------------------

    def find(self, query: Query, top_k: int = TOP, offset: int = 0, **how: Any) -> list[Match]:
        """Return the best matches of a query, best first. how: further arguments of `VideoIndex.search`."""
        if os.path.isabs(query.filter.folder):
            raise ValueError("in: takes the name of a folder of the gallery, like in:holidays")
        with self.gallery.lock:
            texts, video = self._encoded(query), self.gallery.video_in(query.filter)
            if video:
                return self.gallery.distinct_moments(video, texts)[offset : offset + _number(top_k)]
            chosen = replace(query.filter, root=self.gallery.root)
            how |= {"offset": offset, "min_score": query.min_score, "filter": chosen}
            return self.gallery.met(self.index.search(texts, _number(top_k), **how))

    def find_similar(self, path: str, top_k: int = TOP) -> list[Match]:
        """Return the videos most like this one, best first."""
        with self.gallery.lock:
            return self.gallery.met(self.index.similar(path, top_k))

    def why(
        self, path: str, text: str, query: Query, by: str = "query", top_k: int = 8, at: float | None = None
    ) -> Explanation:
        """Return why a video has its score for a query, `text` as it was typed.

        Of a long video the best part is explained, or the one around `at` seconds.
        """
        with self.gallery.lock:
            texts = self._encoded(query) if query.says else None
            return explain(self.index, path, text if query.says else "", by, top_k, texts, at)

    def rank(self, path: str, top_k: int, lines: str = "") -> list[tuple[str, float]]:
        """Return (caption, score), best first: the captions of the list, or these lines, ranked for a video."""
        own = list(dict.fromkeys(line.strip()[:MAX_QUERY] for line in (lines or "").splitlines() if line.strip()))
        if len(own) > MAX_LINES:
            raise ValueError(f"{len(own)} lines are too many: at most {MAX_LINES} captions can be ranked at once")
        with self.gallery.lock:
            if not own:
                return self.index.captions(path, top_k)
            scorer, parts = self.index.scorer, self.index.parts(path)[1]
            folded = scorer.fold_texts(self.index.model.encode_queries(own))
            scores = scorer.score(folded, parts).max(1).tolist()
        return sorted(zip(own, (round(s, 4) for s in scores), strict=True), key=lambda pair: -pair[1])[:top_k]

    def cut(self, row: Row, start: float, end: float, padding: float = 0.0) -> str:
        """Return a clip of a video, in a new folder among the temporary files."""
        if not (isinstance(start, int | float) and isinstance(end, int | float) and end - start <= LONGEST_CLIP):
            raise ValueError(f"start and end must be seconds, at most {LONGEST_CLIP} apart, got {start!r} and {end!r}")
        folder = Path(get_upload_folder(), token_hex(16))
        try:
            return str(save_clip(row.path, start, end, folder, padding))
        except (ValueError, OSError):
            with suppress(OSError):
                folder.rmdir()
            raise

    def _encoded(self, query: Query) -> Queries:
        """Return a query as the model reads it; the last ones are kept."""
        if query not in self._texts:
            self._texts[query] = query.texts(self.index.model)
            if len(self._texts) > KEPT_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(query)
        return self._texts[query]

    def add_files(self, files: list[str]) -> Iterator[Progress]:
        """Copy uploads into the library and index them. Raises ValueError where uploads are refused."""
        if self.options.read_only or self.options.library is None:
            raise ValueError("this gallery is read-only: nobody can add to it here")
        kept, failed = [], {}
        for file in files:
            self.options.uploads.hold(file)
            try:
                self.options.uploads.check(file)
                kept.append(keep_upload(file, self.options.library))
            except ValueError as error:
                failed[readable(Path(file).name)] = error_text(error)
            finally:
                self.options.uploads.release(file)
        yield from self.add_paths(kept, failed)

    def add_paths(self, paths: list[Path], failed: dict[str, str] | None = None) -> Iterator[Progress]:
        """Index files; make their copies for browsers, too, where the operator wants them at once."""
        step = None
        for step in add_paths(self.gallery, paths, failed):
            yield step
        if step and self.options.make_copies:
            prepare([self.gallery.row(name) for name in step.added])

    @contextmanager
    def _using(self, video: str, file: str | None) -> Iterator[str]:
        """Yield the path of a video of the gallery, or of an upload, which is deleted afterwards."""
        file, video = _text(file), _text(video)
        if not file:
            if not video:
                raise ValueError("give the name of a video of the gallery, or upload a file")
            yield self.gallery.row(video).path
            return
        self.options.uploads.hold(file)
        try:
            self.options.uploads.check(file)
            yield file
        finally:
            self.options.uploads.release(file)

    def _json(self, match: Match) -> dict[str, Any]:
        return {
            "video": self.gallery.name(match.path),
            "caption": self.gallery.title(match.path),
            **{n: getattr(match, n) for n in ("score", "moment", "duration", "confidence", "calibrated", "fits")},
            "span": [match.start, match.end],
            "concepts": [{"name": name, "part": part} for name, part in match.concepts],
        }


def _number(number: Any, name: str = "top_k", kind: type = int) -> Any:
    try:
        return min(kind(number or 0), LARGEST_TOP)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number, got {number!r:.100}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"expected a text, got {value!r:.100}")
    return value or ""


def _weights(value: Any) -> dict[str, float]:
    given = {} if value is None else value
    if not isinstance(given, dict) or not all(isinstance(x, int | float) for x in given.values()):
        raise ValueError(f'weights must be an object of words and numbers like {{"ball": 0.8}}, got {value!r:.100}')
    return {word: float(weight) for word, weight in given.items()}
