"""What programs and language models can ask: typed functions, JSON in and out; the page is built on the same ones."""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.utils import get_upload_folder

from suma import Match, VideoIndex
from suma.app.adding import Progress, add_paths
from suma.app.gallery import Gallery
from suma.app.gpu import on_gpu, zero_gpu
from suma.app.media import CACHE, prepare, readable
from suma.app.tiles import esc
from suma.app.uploads import Uploads, keep
from suma.explain import Explanation, explain
from suma.index.query import Query, parse
from suma.similarity import Texts

TOP, LARGEST_TOP = 12, 1000  # results: of a page, of a call
MAX_QUERY = 2000  # characters that are read; the model itself reads fewer
MAX_LINES = 200  # captions of a visitor's own
KEPT_TEXTS = 512  # queries whose encoding is remembered


@dataclass
class Options:
    """What the operator of the app allows."""

    read_only: bool = True  # nobody adds or removes videos
    folders: list[Path] = field(default_factory=list)  # of the server, which visitors may add
    library: Path | None = None  # where uploads for the gallery are kept; None: none are taken
    uploads: Uploads = field(default_factory=Uploads)
    make_copies: bool = False  # copies for browsers are made when videos are added, not when they are shown first


def plain(error: Exception, gallery: Gallery | None = None) -> str:
    """Return what a visitor reads of an error, at most 500 characters, without the folders of the server."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{readable(os.path.basename(os.fsdecode(error.filename)))}: " if error.filename else ""
        return f"{name}{error.strerror}"[:500]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    for folder in (get_upload_folder(), str(CACHE), gallery.root if gallery else ""):
        if len(folder) > 1:
            text = text.replace(folder + os.sep, "")
    return readable(text)[:500]


def kind(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What the user can mend is said in a message instead of a traceback, with the page as it was."""

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except (ValueError, KeyError, OSError) as error:
            text = plain(error, getattr(args[0], "gallery", None))
            raise gr.Error(esc(text), title="That did not work", print_exception=False) from error

    return wrapped


class Api:
    """The six functions over one index; `named` below is what they call a video, its name in the gallery."""

    def __init__(self, index: VideoIndex, options: Options | None = None):
        self.index, self.gallery, self.options = index, Gallery(index), options or Options()
        self._texts: OrderedDict[Any, Texts] = OrderedDict()
        if zero_gpu():
            for name in ("find", "find_similar", "why", "rank"):  # as bound methods: what they are given is plain data
                setattr(self, name, on_gpu(getattr(self, name)))

    @kind
    def search(
        self, query: str, top_k: int = TOP, weights: dict[str, float] | None = None, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Find the videos of the gallery that a text describes best, and the moment in each where it happens.

        Args:
            query: what happens in the video, in English, for example "a dog catches a ball". May be empty where
                weights are given. Words like +beach or -"two dogs" add or subtract what they say, dog^2 counts twice;
                longer:10 shorter:60 (seconds) after:2024-01-31 before:2024-03-01 in:holidays (a folder's name) and
                score:0.2 (the least) choose which videos may answer.
            top_k: how many videos to return, 1 to 1000.
            weights: optional steering of concepts: a word and its weight from -1 (ban what this word names) over 0
                (ignore it) to 1 (strengthen it), for example {"snow": -1, "ball": 0.8}.
            offset: how many of the best to leave out: 12 for the second page of 12.

        Returns:
            A list, best first, of {video: its name, caption, score, moment: seconds of its best moment, duration:
            seconds, concepts: [{name, part: of the score}]}.
        """
        return [
            self._json(match) for match in self.find(_text(query), _weights(weights), top_k, _count(offset, "offset"))
        ]

    @kind
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
            return [{"caption": text, "score": score} for text, score in self.rank(path, _count(top_k), lines)]

    @kind
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
            return [self._json(match) for match in self.find_similar(path, _count(top_k))]

    @kind
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
            seconds, frame_scores, duration, start and end (seconds): the part of a long video that answers best,
            concepts: [{id, name, words, query_weight, activation, part: of the score, heat: activation in each
            frame}]}.
        """
        found = asdict(self.why(self.gallery.row(video).path, _text(query), _weights(weights), by, _count(top_k)))
        return {"video": video, **{name: value for name, value in found.items() if name != "path"}}

    @kind
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
            for k, name, _, share in gallery.find_concepts(_text(words), _count(top_k))
        ]

    @kind
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
        return {
            "added": last.added,
            "skipped": last.skipped,
            "failed": last.failed,
            "videos": len(self.gallery.names),
        }

    # ---- what they and the page are made of ------------------------------------------------------------------------

    def find(self, sentence: str, weights: dict[str, float], top_k: int = TOP, offset: int = 0) -> list[Match]:
        """A search in the language of suma/index/query.py, steered."""
        asked = _asked(sentence)
        if os.path.isabs(asked.filter.folder):
            raise ValueError("in: takes the name of a folder of the gallery, like in:holidays")
        with self.gallery.lock:
            texts, chosen = self.texts(sentence, weights), replace(asked.filter, root=self.gallery.root)
            return self.index.search(texts, _count(top_k), offset=offset, min_score=asked.min_score, filter=chosen)

    def find_similar(self, path: str, top_k: int = TOP) -> list[Match]:
        """Videos like this one."""
        with self.gallery.lock:
            return self.index.similar(path, top_k)

    def why(
        self,
        path: str,
        sentence: str,
        weights: dict[str, float],
        by: str = "query",
        top_k: int = 8,
        at: float | None = None,
    ) -> Explanation:
        """Why a video has its score; of a long one the best part, or the one around `at` seconds."""
        says = bool(_asked(sentence).mixed or weights)
        with self.gallery.lock:
            texts = self.texts(sentence, weights) if says else None
            return explain(
                self.index, path, " ".join(sentence.split())[:MAX_QUERY] if says else "", by, top_k, texts, at
            )

    def rank(self, path: str, top_k: int, lines: str = "") -> list[tuple[str, float]]:
        """Captions of the list, or these lines, ranked for a video."""
        own = list(dict.fromkeys(line.strip()[:MAX_QUERY] for line in (lines or "").splitlines() if line.strip()))
        if len(own) > MAX_LINES:
            raise ValueError(f"{len(own)} lines are too many: at most {MAX_LINES} captions can be ranked at once")
        with self.gallery.lock:
            if not own:
                return self.index.captions(path, top_k)
            model, parts = self.index.model, self.index.parts(path)[1]
            scores = model.score(model.texts(own), parts).amax(1).tolist()
        return sorted(zip(own, (round(s, 4) for s in scores), strict=True), key=lambda pair: -pair[1])[:top_k]

    def texts(self, sentence: str, weights: dict[str, float]) -> Texts:
        """A query as the model reads it; the last ones are remembered."""
        asked = (" ".join(sentence.split())[:MAX_QUERY], tuple(weights.items()))
        with self.gallery.lock:
            if asked not in self._texts:
                query = replace(_asked(sentence), weights=tuple(weights.items()))
                self._texts[asked] = query.texts(self.index.model)
                while len(self._texts) > KEPT_TEXTS:
                    self._texts.popitem(last=False)
            self._texts.move_to_end(asked)
            return self._texts[asked]

    def add_files(self, files: list[str]) -> Iterator[Progress]:
        """Copy uploads into the library and index them; raises ValueError where none are taken."""
        if self.options.read_only or self.options.library is None:
            raise ValueError("this gallery is read-only: nobody can add to it here")
        kept, failed = [], {}
        for file in files:
            self.options.uploads.take(file)
            try:
                self.options.uploads.check(file)
                kept.append(keep(file, self.options.library))
            except ValueError as error:
                failed[readable(Path(file).name)] = plain(error)
            finally:
                self.options.uploads.leave(file)
        yield from self.add_paths(kept, failed)

    def add_paths(self, paths: list[Path], failed: dict[str, str] | None = None) -> Iterator[Progress]:
        """Index files, and make their copies for browsers where the operator wants them at once."""
        step = None
        for step in add_paths(self.gallery, paths, failed):
            yield step
        if step and self.options.make_copies:
            prepare([self.gallery.row(name) for name in step.added])

    @contextmanager
    def _using(self, video: str, file: str | None) -> Iterator[str]:
        """The path of a video of the gallery, or of an upload, which is deleted afterwards."""
        file, video = _text(file), _text(video)
        if not file:
            if not video:
                raise ValueError("give the name of a video of the gallery, or upload a file")
            yield self.gallery.row(video).path
            return
        self.options.uploads.take(file)
        try:
            self.options.uploads.check(file)
            yield file
        finally:
            self.options.uploads.leave(file)

    def _json(self, match: Match) -> dict[str, Any]:
        concepts = [{"name": name, "part": part} for name, part in match.concepts]
        path = match.path
        return {
            "video": self.gallery.name(path),
            "caption": self.gallery.title(path),
            "score": match.score,
            "moment": match.moment,
            "duration": match.duration,
            "concepts": concepts,
        }


def _asked(sentence: str) -> Query:
    return parse(" ".join(sentence.split())[:MAX_QUERY])


def _count(number: Any, name: str = "top_k") -> int:
    try:
        return min(int(number or 0), LARGEST_TOP)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number, got {number!r:.100}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"expected a text, got {value!r:.100}")
    return value or ""


def _weights(value: Any) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(v, int | float) and isinstance(k, str) for k, v in value.items()
    ):
        raise ValueError(f'weights must be an object of words and numbers like {{"ball": 0.8}}, got {value!r:.100}')
    return {word: float(weight) for word, weight in value.items()}


def on_spaces() -> bool:
    """Whether this runs on Hugging Face Spaces."""
    return bool(os.environ.get("SPACE_ID"))
