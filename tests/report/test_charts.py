"""Values lie where they belong."""

import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsoftmax.report.chart import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Chart,
    Line,
    Mark,
    line_chart,
    thinned,
)
from mpsoftmax.report.scales import deviates, linear, logarithmic
from mpsoftmax.report.shapes import Cloud, Distribution, clouds, histogram
from mpsoftmax.report.words import number, short, signed

SVG = "{http://www.w3.org/2000/svg}"


def drawing(markup: str) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*</svg>", markup, re.S).group())


def places(path: ET.Element) -> np.ndarray:
    found = list(map(float, re.findall(r"-?\d+\.\d", path.attrib["d"])))
    return np.array(found).reshape(-1, 2)


def lines_of(svg: ET.Element) -> list[ET.Element]:
    return [one for one in svg.iter(f"{SVG}path") if "line" in one.attrib["class"].split()]


def test_a_line_passes_through_its_values():
    x, y = linear([0, 100], LEFT, RIGHT), linear([0, 10], BOTTOM, TOP)
    made = line_chart(Chart("loss"), [Line("run", [0, 25, 100], [10.0, 5.0, 0.0])], x, y)
    (path,) = lines_of(drawing(made))
    width, height = RIGHT - LEFT, BOTTOM - TOP
    expected = [(LEFT, TOP), (LEFT + width / 4, TOP + height / 2), (RIGHT, BOTTOM)]
    np.testing.assert_allclose(places(path), expected, atol=0.051)
    values = json.loads(re.search(r"json\">(.*?)</script>", made).group(1))
    assert values["lines"][0]["x"] == [0, 25, 100]
    assert values["lines"][0]["y"] == [10, 5, 0]


def test_a_gap_begins_the_line_anew_and_has_no_value():
    x, y = linear([0, 3], LEFT, RIGHT), linear([1, 3], BOTTOM, TOP)
    made = line_chart(Chart("loss"), [Line("run", [0, 1, 2, 3], [1.0, None, 2.0, 3.0])], x, y)
    (path,) = lines_of(drawing(made))
    assert [word[0] for word in re.findall(r"[ML][^ML]*", path.attrib["d"])] == ["M", "M", "L"]
    assert len(places(path)) == 3
    assert json.loads(re.search(r"json\">(.*?)</script>", made).group(1))["lines"][0]["x"] == [
        0,
        2,
        3,
    ]


def test_marks_stand_at_their_step_and_say_what_happened():
    x, y = linear([0, 10], LEFT, RIGHT), linear([0, 1], BOTTOM, TOP)
    marks = [Mark(5, "went on from step 5"), Mark(11, "beyond")]
    svg = drawing(line_chart(Chart("loss"), [Line("r", [0, 10], [0.0, 1.0])], x, y, marks))
    (mark,) = [one for one in svg.iter(f"{SVG}g") if one.attrib.get("class") == "mark"]
    assert mark.find(f"{SVG}title").text == "went on from step 5"
    assert float(mark.find(f"{SVG}line").attrib["x1"]) == pytest.approx(
        (LEFT + RIGHT) / 2, abs=0.06
    )


def test_a_histogram_is_as_high_as_its_shares():
    edges = [0.0, 1.0, 2.0, 3.0, 4.0]
    made = histogram(Chart("h"), edges, [Distribution("one", [0.0, 0.25, 0.75, 0.0])])
    (path,) = lines_of(drawing(made))  # through the middles of the two bins that hold something
    y = linear([0, 75], BOTTOM, TOP)
    middle = [LEFT + (RIGHT - LEFT) * part for part in (0.25, 0.75)]
    expected = [(middle[0], y.at(25)), (middle[1], y.at(75))]
    np.testing.assert_allclose(places(path), expected, atol=0.051)


def test_medians_of_a_cloud_by_bins_of_size():
    sizes, values = [1, 1, 1, 4, 4], [0.1, 0.2, 0.6, 0.5, 0.7]
    x, y = logarithmic(1, 8, LEFT, RIGHT, base=2), linear([0, 1], BOTTOM, TOP)
    made = clouds(Chart("c"), [Cloud("within", sizes, values)], x, y, np.array([2.0, 4.0]))
    (path,) = lines_of(drawing(made))
    expected = [(x.at(1), y.at(0.2)), (x.at(4), y.at(0.6))]
    np.testing.assert_allclose(places(path), expected, atol=0.051)
    assert x.at(4) == pytest.approx(LEFT + (RIGHT - LEFT) * 2 / 3)


def test_det_axes_are_normal_deviates():
    scale = deviates(0.01, 0.99, 0.0, 100.0)
    assert scale.at(0.5) == pytest.approx(50)
    one_sigma = 0.158655253931457  # of the standard normal distribution
    assert 50 - scale.at(one_sigma) == pytest.approx(50 / 2.3263478740408408)  # quantile of 0.99
    assert scale.at(1e-9) == 0.0


def test_long_lines_keep_their_spikes_and_gaps():
    ys = [math.sin(k / 50) for k in range(5000)]
    ys[1234], ys[4000] = 9.0, None
    line = thinned(Line("loss", range(5000), ys))
    assert len(line.xs) <= MOST_POINTS + 2
    assert line.ys[list(line.xs).index(1234)] == 9.0
    assert None in line.ys
    assert (line.xs[0], line.xs[-1]) == (0, 4999)
    assert list(line.xs) == sorted(line.xs)


@given(
    st.lists(
        st.floats(-1e12, 1e12, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-12),
        min_size=1,
        max_size=5,
    )
)
def test_a_linear_scale_holds_its_values_and_few_ticks(values):
    scale = linear(values, 0.0, 100.0)
    slack = 1e-8 * (scale.high - scale.low)
    assert scale.low - slack <= min(values) <= max(values) <= scale.high + slack
    assert 2 <= len(scale.ticks) <= 9
    for value in values:
        part = (value - scale.low) / (scale.high - scale.low)
        assert scale.at(value) == pytest.approx(100 * part, abs=1e-5)


def test_ticks_are_round():
    assert linear([0.9042, 0.9597], 0, 1).ticks == (0.9, 0.92, 0.94, 0.96)
    assert linear([0, 160], 0, 1, whole=True, rounded=False).ticks == (0, 50, 100, 150)
    assert linear([7, 7], 0, 1).low < 7 < linear([7, 7], 0, 1).high
    assert logarithmic(0.0005, 1, 0, 1).ticks == (0.001, 0.01, 0.1, 1)


def test_numbers_as_people_read_them():
    assert [number(v) for v in (12345.0, 0.123456, -3.0, None, math.nan)] == [
        "12,345",
        "0.1235",
        "\u22123",
        "\u2013",
        "\u2013",
    ]
    assert [short(v) for v in (0.0, 1500.0, 2e6, 1e-5, 0.25)] == ["0", "1.5k", "2M", "1e-5", "0.25"]
    assert signed(-0.01234) == "\u22120.0123"
