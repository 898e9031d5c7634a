"""Scenes: the layout on disk, the rules of the splits, the captions' grammar, and truth that agrees with the pixels."""

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import scenes
from benchmarks import load_clips
from emoji_scenes import visitors
from emoji_scenes.backgrounds import SPRITES
from emoji_scenes.captions import GERUND_LEADS, inflect
from emoji_scenes.extra import more, short_captions, sides
from emoji_scenes.render import render
from emoji_scenes.specs import OPPOSITE, PAIRS, PROBES, Spec, all_specs, held_out, twin
from emoji_scenes.words import ACTORS, MOTIONS, SETTINGS, VERBS
from scenes import recall_at_1

KEYS = ["video_id", "video", "caption", "source", "category", "url", "start time", "end time", "id"]


@pytest.fixture(scope="module")
def specs() -> list[Spec]:
    return all_specs(900, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "tiny"
    scenes.write_dataset(out, videos=12, seed=1, further=5)
    return out


def rows(folder: Path, config: str) -> list[dict]:
    return json.loads((folder / f"scenes_{config}.json").read_text())


def decode(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_layout_is_that_of_msrvtt(dataset: Path) -> None:
    names, ids = set(), []
    for config, captions in (
        ("train_9k", 8),
        ("test_1k", None),
        ("probe", None),
        ("stills", 8),
        ("sides", 0),
        ("more", 16),
    ):
        for row in rows(dataset, config):
            assert list(row) == KEYS
            assert (
                isinstance(row["caption"], str)
                if captions is None
                else len(set(row["caption"])) == (captions or len(row["caption"]))
            )
            assert row["video"] == row["video_id"] + ".mp4"
            names.add("video/" + row["video"])
            ids.append(row["video_id"])
    training = rows(dataset, "train_9k")
    assert len(training) == len(rows(dataset, "short")) == 12
    urls = [row["url"] for row in training]
    twins = rows(dataset, "twins")
    assert twins == [row for row in training if urls.count(row["url"]) == 2] and len(twins) == 4
    specs = all_specs(12, 1)
    with_sides = [*specs, *sides(12, specs[-1].source + 1)]
    shown = [*with_sides, *more(5, 1, with_sides[-1].source + 1)]
    with zipfile.ZipFile(dataset / "Scenes_Videos.zip") as archive:
        assert set(archive.namelist()) == names
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert [json.loads(line)["video_id"] for line in (dataset / "truth.jsonl").open()] == [
        spec.video_id for spec in shown
    ]
    assert sorted(ids) == sorted(set(ids))


def test_mirrored_pictures_are_told_apart_by_the_side_alone(specs: list[Spec]) -> None:
    found = list(sides(900, specs[-1].source + 1))
    assert len(found) == 300 and not any(held_out(spec.clip) for spec in found)
    swap = {"left": "right", "right": "left"}
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert one.source == two.source and one.clip.shots == two.clip.shots
        for a, b in zip(one.clip.acts, two.clip.acts, strict=True):
            assert a.x + b.x == pytest.approx(1) and (a.y, a.size, a.actor) == (b.y, b.size, b.actor)
        assert one.clip.acts[0].x < 0.5
        for caption, twin_caption in zip(one.captions, two.captions, strict=True):
            assert re.sub("left|right", lambda m: swap[m[0]], caption) == twin_caption != caption


def test_further_clips_are_other_training_clips(specs: list[Spec], dataset: Path, tmp_path: Path) -> None:
    found = list(more(200, 3, specs[-1].source + 1))
    assert len(found) in (200, 201) and not any(held_out(spec.clip) for spec in found)
    assert not {spec.clip for spec in found} & {spec.clip for spec in specs}
    assert min(spec.source for spec in found) > max(spec.source for spec in specs)
    twins = len(found) - len({spec.source for spec in found})
    assert 20 < twins < 60 and {spec.kind for spec in found} == {"solo", "duo", "seq", "twoact", "cut"}
    assert all(len(spec.captions) == 16 and spec.captions[8:] == short_captions(spec) for spec in found)
    clips = load_clips(str(dataset), "more")
    assert len(clips) in (5, 6) and all(clip.path.is_file() and len(clip.captions) == 16 for clip in clips)
    with pytest.raises(ValueError, match="fewer than 0"):
        scenes.write_dataset(tmp_path / "none", further=-1)


def test_short_captions_are_short_english_of_their_clip(specs: list[Spec]) -> None:
    clips = [spec for spec in specs if spec.split == "train"]
    for spec in clips:
        short = short_captions(spec)
        assert short == short_captions(spec) and len(set(short)) == 8
        actors = [act.actor for act in spec.clip.acts]
        names = {n for a in actors for n in (a, *ACTORS[a].synonyms, *visitors.NAMES.get(a, ()))}
        for caption in short:
            assert any(name in caption for name in names), caption
            wrong = r"  |[{}]|SIDE|OTHER| in in |\ban? some|\ba (?!uni|ufo)[aeiou]|\ban (?![aeiou])"
            assert not re.search(wrong, caption) and caption == caption.strip(), caption
    lengths = [[len(c.split()) for spec in clips for c in of(spec)] for of in (short_captions, lambda s: s.captions)]
    assert np.mean(lengths[0]) < 0.6 * np.mean(lengths[1])


def test_visitors_words_are_of_what_scenes_shows() -> None:
    assert set(visitors.NAMES) < set(ACTORS) and set(visitors.PLACES) == set(SETTINGS)
    assert set(visitors.MOTIONS) == set(MOTIONS) and set(visitors.BEFORE) < set(MOTIONS)
    assert set(visitors.VERBS) == set(VERBS)
    own = [name for actor in ACTORS.values() for name in (actor.name, *actor.synonyms)]
    names = [name for further in visitors.NAMES.values() for name in further]
    assert not [name for name, times in Counter(names).items() if times > 1]
    assert not [name for name in names if name in own]
    for motion, phrases in visitors.MOTIONS.items():
        for form in ("finite", "gerund"):
            told = [inflect(phrase.format(verb="fly"), form) for phrase in phrases]
            assert len(set(told)) == len(told) and not set(told) & set(MOTIONS[motion])


def test_visitors_queries_name_what_scenes_shows() -> None:
    rows = json.loads((Path(scenes.__file__).parent / "emoji_scenes" / "visitor_queries.json").read_text())
    assert len({row["query"] for row in rows}) == len(rows) > 250
    assert {frozenset(row) - {"setting", "actions", "seen"} for row in rows} == {frozenset({"query", "actors"})}
    for row in rows:
        assert set(row["actors"]) <= set(ACTORS) and row.get("setting", "snow") in SETTINGS, row
        assert set(row.get("actions", ())) <= set(MOTIONS), row


def test_load_dataset_reads_it(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for config, split, count in (("train_9k", "train", 12), ("probe", "test", 20), ("stills", "train", 11)):
        table = datasets.load_dataset(str(dataset), config, split=split, cache_dir=str(tmp_path))
        assert len(table) == count
        assert table.column_names == KEYS


def test_videos_decode(dataset: Path) -> None:
    with zipfile.ZipFile(dataset / "Scenes_Videos.zip") as archive:
        assert decode(archive.read("video/video0.mp4")).shape == (40, 160, 160, 3)
        assert decode(archive.read("video/still0.mp4")).shape == (1, 160, 160, 3)


def test_same_seed_same_bytes_with_any_number_of_processes(dataset: Path, tmp_path: Path) -> None:
    scenes.write_dataset(tmp_path / "again", videos=12, seed=1, workers=2, further=5)
    assert digests(tmp_path / "again") == digests(dataset)
    assert all_specs(12, 1) != all_specs(12, 2)


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not empty"):
        scenes.write_dataset(tmp_path, videos=12)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_held_out_combinations_stay_out_of_training(specs: list[Spec]) -> None:
    def combinations(split: str) -> list[set[tuple[str, ...]]]:
        found = []
        for spec in specs:
            if spec.split == split:
                acts, actors = spec.clip.acts, sorted({act.actor for act in spec.clip.acts})
                keys = {(act.actor, "in", spec.clip.setting_of(act)) for act in acts}
                if split != "stills":
                    keys |= {(act.actor, "does", act.motion) for act in acts}
                found.append(keys | ({tuple(actors)} if len(actors) == 2 else set()))
        return found

    train = set().union(*combinations("train"), *combinations("stills"))
    assert all(keys - train for keys in combinations("test") + combinations("probe"))
    assert {spec.split for spec in specs if held_out(spec.clip)} == {"test", "probe"}


def test_twins_differ_only_in_time(specs: list[Spec]) -> None:
    sources: dict[int, list[Spec]] = {}
    for spec in specs:
        sources.setdefault(spec.source, []).append(spec)
    pairs = [pair for pair in sources.values() if len(pair) == 2]
    assert {len(pair) for pair in sources.values()} == {1, 2}
    assert sum(pair[0].split == "train" for pair in pairs) == 180  # of 900 clips
    for one, two in pairs:
        assert one.kind == two.kind
        assert scenes.row(two)["id"] == scenes.row(one)["id"] + 1
        acts = two.clip.acts
        if one.kind in ("seq", "twoact", "cut"):  # the other order
            acts = tuple(
                replace(act, start=then.start, stop=then.stop, carries_on=then.carries_on)
                for act, then in zip(acts[::-1], one.clip.acts, strict=True)
            )
            assert acts == one.clip.acts
            assert [s.setting for s in two.clip.shots] == [s.setting for s in one.clip.shots][::-1]
        else:  # one opposite motion
            changed = [(a, b) for a, b in zip(one.clip.acts, acts, strict=True) if a != b]
            assert [OPPOSITE[a.motion] == b.motion for a, b in changed] == [True]
            assert [replace(a, motion=b.motion, mirror=b.mirror) == b for a, b in changed] == [True]
            assert one.clip.shots == two.clip.shots
        assert (one.clip.weather, one.clip.camera, one.clip.seed) == (two.clip.weather, two.clip.camera, two.clip.seed)


def test_probe_captions_differ_only_in_time(specs: list[Spec]) -> None:
    probes = [spec for spec in specs if spec.split == "probe"]
    assert {spec.probe for spec in probes} == set(PROBES)
    for one, two in zip(probes[::2], probes[1::2], strict=True):
        assert one.captions != two.captions
        if one.probe == "order":  # the same words in another order
            assert sorted(re.findall("[a-z-]+", one.captions[0])) == sorted(re.findall("[a-z-]+", two.captions[0]))
        if one.probe == "left/right":
            assert re.sub("left|right", "", one.captions[0]) == re.sub("left|right", "", two.captions[0])


def test_opposite_motions_are_worded_alike() -> None:
    for one, two in PAIRS:
        assert len(MOTIONS[one]) == len(MOTIONS[two])
        assert not set(MOTIONS[one]) & set(MOTIONS[two])


def test_each_word_names_one_actor() -> None:
    words = [word for actor in ACTORS.values() for word in (actor.name, *actor.synonyms)]
    assert sorted(words) == sorted(set(words))
    assert all((SPRITES / f"{name.replace(' ', '-')}.webp").exists() for name in ACTORS)


@pytest.mark.parametrize(
    ("phrase", "finite", "gerund"),
    [
        ("fly left", "flies left", "flying left"),
        ("cross from left to right", "crosses from left to right", "crossing from left to right"),
        ("get bigger", "gets bigger", "getting bigger"),
        ("not move", "does not move", "not moving"),
        ("stay still", "stays still", "staying still"),
        ("go up", "goes up", "going up"),
    ],
)
def test_inflection(phrase: str, finite: str, gerund: str) -> None:
    assert inflect(phrase, "finite") == finite
    assert inflect(phrase, "gerund") == gerund
    assert inflect(phrase, "progressive") == "is " + gerund


def test_captions_are_english(specs: list[Spec]) -> None:
    finite = {
        inflect(phrase, "finite").split()[0] for phrases in MOTIONS.values() for phrase in phrases if "{" not in phrase
    }
    finite |= {inflect(verb, "finite") for verbs in VERBS.values() for verb in verbs}
    for caption in {caption for spec in specs for caption in spec.captions}:
        assert re.fullmatch(r"[a-z][a-z ,-]*[a-z]", caption), caption
        assert not re.search(r"  | in in |\b(\w+) \1\b", caption), caption
        assert not re.search(r"\ba (?!uni|ufo)[aeiou]", caption), caption
        assert not re.search(r"\ban (?![aeiou])|\ban (uni|ufo)", caption), caption
        lead = next((lead for lead in GERUND_LEADS if lead and caption.startswith(lead)), None)
        if lead is not None:  # not "we see a lobster wiggles"
            said = re.sub("as (snow|rain) falls|while it rains", "", caption.removeprefix(lead))
            assert not finite & set(said.replace(",", "").split()), caption


def test_actors_face_the_way_they_go(specs: list[Spec]) -> None:
    for spec in specs:
        for act in spec.clip.acts:
            facing = ACTORS[act.actor].facing
            if act.motion in ("left", "right") and facing != "none":
                assert act.mirror == (act.motion != facing)


def test_truth_agrees_with_the_pixels(dataset: Path) -> None:
    """Against the same clip without actors, all that differs lies in the boxes, and nearly fills them."""
    checked = 0
    by_id = {spec.video_id: spec for spec in all_specs(12, 1)}
    archive = zipfile.ZipFile(dataset / "Scenes_Videos.zip")
    for scene in map(json.loads, (dataset / "truth.jsonl").open()):
        if scene["split"] in ("stills", "sides", "more") or by_id[scene["video_id"]].clip.weather:
            continue
        clip = by_id[scene["video_id"]].clip
        video = decode(archive.read(f"video/{scene['video_id']}.mp4")).astype(int)
        empty = np.stack([np.asarray(frame) for frame in render(replace(clip, acts=()))[0]])
        differs = np.abs(video - empty).max(-1) > 70
        for number in (2, 17, 33):
            inside = np.zeros((160, 160), bool)
            for actor in scene["actors"]:
                assert len(actor["boxes"]) == 40
                if actor["boxes"][number]:
                    x, y, w, h = actor["boxes"][number]
                    inside[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2] = True
            assert differs[number][~inside].sum() <= 100, (scene["video_id"], number)
            if scene["kind"] == "solo" and scene["actors"][0]["boxes"][number] and differs[number].sum() > 800:
                ys, xs = np.nonzero(differs[number])
                assert np.ptp(xs) > 0.6 * w and np.ptp(ys) > 0.6 * h
                checked += 1
    archive.close()
    assert checked > 5


def test_the_oracle_needs_time(specs: list[Spec]) -> None:
    """Two test clips alike but for the order: a reader without time can only guess."""
    spec = next(spec for spec in specs if spec.split == "test" and spec.kind == "twoact")
    spec = replace(spec, tells=(True, True))
    pair = [spec, replace(spec, clip=twin(spec.clip, "twoact"))]
    assert recall_at_1(pair, {"actors": 3, "settings": 2}) == 50
    assert recall_at_1(pair, {"actors": 3, "motion order": 1}) == 100


def test_gallery(dataset: Path, tmp_path: Path) -> None:
    scenes.write_gallery(dataset, tmp_path, 3)
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(captions)
    assert {path.stem + ".mp4" for path in (tmp_path / "posters").iterdir()} == set(captions)
    assert all(captions[row["video"]] == row["caption"] for row in rows(dataset, "test_1k") if row["video"] in captions)
