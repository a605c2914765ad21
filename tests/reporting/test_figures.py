"""What several scripts draw and write: curves in seconds, bars per attribute, tables."""

import numpy as np
import pytest

from aux_code.reporting.figures import AttributeScores, Curve, Strip, attribute_bars, score_figure
from aux_code.reporting.table import Table, percent


def test_scores_last_to_the_end_of_the_video_in_seconds():
    raw = Curve("raw", np.repeat(np.float32([0.1, 0.9]), 25), "red")
    strips = [Strip("Raw", np.zeros((2, 4, 4, 3), np.uint8), (10, 40))]
    curves, strip = score_figure([raw], [(5, 20)], np.arange(51) / 25, strips, threshold=0.5).axes
    threshold, curve = curves.lines
    assert curve.get_xdata()[[0, 25, 50]].tolist() == [0, 1, 2]
    assert curve.get_ydata()[[24, 25, 50]] == pytest.approx([0.1, 0.9, 0.9])
    assert list(threshold.get_ydata()) == [0.5, 0.5] and curves.get_xlim() == (0, 2)
    assert curves.get_xlabel() == "seconds"
    (event,) = curves.patches
    assert (event.get_x(), event.get_x() + event.get_width()) == (0.2, 0.8)
    assert len(strip.child_axes) == 2


def test_bars_stand_beside_chance_and_say_where_there_is_nothing_to_find():
    chance = {"a1_age": 0.25, **{f"a{i}_x": 0.5 for i in range(2, 8)}, "a8_face": 0.0}
    raw = AttributeScores("raw", {"a1_age": 0.75}, "red", {"a1_age": 0.1})
    figure = attribute_bars([raw, AttributeScores("blur", {"a1_age": None}, "blue")], chance)
    first, last = figure.axes[0], figure.axes[7]
    assert [bar.get_width() for bar in first.patches] == [75] and first.get_title("left") == "age"
    assert list(first.lines[-1].get_xdata()) == [25, 25]
    assert [text.get_text() for text in last.texts] == ["no positive\ntest image"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["raw", "blur"]
    assert [axes.get_visible() for axes in figure.axes] == [True] * 8 + [False] * 6


def test_a_table_in_markdown():
    table = Table("A", ("x", "y"), (("a", "1\n2"),), ("note",), warnings=("look",))
    text = "### A\n\n| x | y |\n| :--- | ---: |\n| a | 1<br>2 |\n\n**look**\n\nnote\n"
    assert table.markdown() == text
    assert [percent(0.5), percent(0.5, 0.01, 1), percent(None)] == ["50.00", "50.0 ± 1.0", "–"]
