"""Worse annotations are as bad as they were asked to be, and spare the held-out clips."""

import numpy as np
import pytest
from data import corrupt_captions
from test_data import clip


def test_shuffled_captions_are_anothers_and_the_rest_stays():
    clips = [clip(i) for i in range(20)]
    assert corrupt_captions(clips, range(15), 0.4, 0.0, 0, seed=0) == list(range(15))
    changed = [i for i, c in enumerate(clips) if c.captions != (f"caption {i}",)]
    assert len(changed) == 6 and max(changed) < 15
    assert sorted(clips[i].captions for i in changed) == sorted((f"caption {i}",) for i in changed)


def test_dropped_words_leave_at_least_one():
    clips = [clip(i) for i in range(200)]
    corrupt_captions(clips, range(100), 0.0, 0.5, 0, seed=0)
    words = [len(c.captions[0].split()) for c in clips]
    assert set(words[:100]) == {1, 2} and np.mean(words[:100]) < 1.5 and set(words[100:]) == {2}


def test_fewer_clips_are_drawn_by_the_seed():
    kept = [corrupt_captions([clip(i) for i in range(30)], range(5, 30), 0.0, 0.0, 10, seed) for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2] and len(kept[0]) == 10 and min(kept[0]) >= 5
    for bad in ((1.5, 0.0, 0), (0.0, 1.0, 0), (0.0, 0.0, 26)):
        with pytest.raises(ValueError, match="must be shares"):
            corrupt_captions([clip(i) for i in range(30)], range(5, 30), *bad, seed=0)
