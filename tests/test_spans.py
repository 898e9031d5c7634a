"""The span around a moment, by its frames' scores."""

import numpy as np
import pytest

from suma.index.search import span_of
from suma.index.storage import Row


@pytest.mark.parametrize(
    ("scores", "best", "span"),
    [
        ([0.1, 0.2, 0.9, 0.8, 0.1, 0.1], 2, (3.0, 7.0)),
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1], 0, (0.0, 1.0)),  # begins with the part
        ([0.1, 0.1, 0.1, 0.1, 0.8, 0.9], 5, (7.0, 12.0)),  # ends with it
        ([0.1, 0.9, 0.4, 0.9, 0.8, 0.1], 1, (1.0, 9.0)),  # a short dip does not end it
        ([0.5] * 6, 0, (0.0, 12.0)),  # all alike: the whole
    ],
)
def test_the_span_holds_the_frames_that_stand_out(scores: list[float], best: int, span: tuple[float, float]):
    row = Row("a.mp4", 1, 0.0, "x", 12.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0], "", 0.0, 12.0)
    assert span_of(np.array(scores), row, best) == pytest.approx(span)


def test_a_photograph_is_its_own_span():
    row = Row("a.jpg", 1, 0.0, "x", 0.0, [0.0], "", 0.0, 0.0)
    assert span_of(np.array([0.3]), row, 0) == (0.0, 0.0)
