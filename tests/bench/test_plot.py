import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import plot
from bench.rounds import summed
from tests.bench.reports import case, figures, percentiles, report

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ET.fromstring(svg)  # noqa: S314 - our own


def texts(svg):
    return [one.text for one in parsed(svg).iter(f"{SVG}text")]


def bars(svg):
    return [one for one in parsed(svg).iter(f"{SVG}rect") if "bar" in one.get("class")]


def test_bars_are_as_long_as_their_values():
    svg = plot.bars("Cost", "µs", [plot.Group("request", (("nginx", 10.0), ("farebox", 40.0)))])
    first, second = (float(one.get("width")) for one in bars(svg))
    assert second == pytest.approx(4 * first, abs=0.2)
    assert [one.get("class") for one in bars(svg)] == ["bar", "bar ours"]
    assert {"Cost", "request", "nginx", "farebox", "10", "40"} <= set(texts(svg))


def test_a_large_span_is_drawn_on_a_logarithmic_scale_and_says_so():
    svg = plot.bars("Cost", "µs", [plot.Group("request", (("nginx", 12.0), ("litellm", 9000.0)))])
    assert "µs; logarithmic scale" in texts(svg)
    first, second = (float(one.get("width")) for one in bars(svg))
    assert 1 < second / first < 100


def test_both_light_and_dark_are_there():
    assert "prefers-color-scheme: dark" in plot.bars("a", "b", [plot.Group("c", (("d", 1.0),))])


def test_names_cannot_break_out_of_the_picture():
    svg = plot.bars("<script>", "&", [plot.Group('"', (("<b>", 1.0),))])
    assert "<script>" in texts(svg)
    assert "<b>" in texts(svg)


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=8))
def test_every_value_has_its_place_on_the_scale(values):
    scale = plot.Scale.over(values)
    for value in values:
        assert -1e-9 <= scale.at(value) <= 1 + 1e-9
    assert scale.ticks()[-1] >= max(values) * (1 - 1e-9)


def test_lines_go_from_left_to_right():
    svg = plot.lines("Soak", "flat", [("MB", [(0.0, 1.0), (5.0, 2.0)]), ("fds", [(0.0, 9.0), (5.0, 9.0)])])
    found = list(parsed(svg).iter(f"{SVG}polyline"))
    assert len(found) == 2
    xs = [float(point.split(",")[0]) for point in found[0].get("points").split()]
    assert xs == sorted(xs)


def full_report():
    rows = summed(
        {
            "direct": [figures(added=percentiles(1.0, 2.0), events=100, stretch=percentiles(0.0, 0.5))],
            "nginx": [
                figures(cpu=10.0, events=100, added=percentiles(1.0, 3.0), stretch=percentiles(0.0, 0.9))
            ],
            "farebox": [
                figures(cpu=20.0, events=100, added=percentiles(1.0, 4.0), stretch=percentiles(0.0, 1.5))
            ],
        }
    )
    return report(case(rows, "400 × 250/s", saturates=True), case(summed({"nginx": [figures(cpu=12.0)]})))


def test_a_report_is_drawn_beside_itself(tmp_path):
    path = tmp_path / "paced-1.json"
    path.write_text(json.dumps(full_report()))
    written = plot.write(path)
    assert [file.name for file in written] == [
        "paced-1-cpu.svg",
        "paced-1-rates.svg",
    ]
    for file in written:
        parsed(file.read_text())


def test_times_are_drawn_where_nothing_queues_and_also_where_nothing_was_added():
    found = full_report()
    assert set(plot.plots(found)) == {"cpu", "rates"}
    found["cases"][0]["saturates"] = False
    drawn = plot.plots(found)
    assert set(drawn) == {"cpu", "rates", "first", "gaps"}
    for row in found["cases"][0]["rows"].values():
        row["added_first_ms"] = {"p99": 0.0}
    drawn = plot.plots(found)["first"]
    assert {"direct", "nginx", "farebox", "0"} <= set(texts(drawn))
    assert {one.get("width") for one in bars(drawn)} == {"0.0"}


def test_work_is_drawn_by_event_for_streams_and_by_answer_for_the_rest():
    drawn = texts(plot.plots(full_report())["cpu"])
    assert "400 × 250/s, per event" in drawn
    assert "64 at once, per answer" in drawn
    assert "400 × 250/s, events per second" in texts(plot.plots(full_report())["rates"])


def test_a_soak_is_drawn_over_time():
    soak = {
        "target": "farebox",
        "samples": [[0.0, 50 * 2**20, 40, 0.0], [1.0, 60 * 2**20, 41, 0.5]],
        "verdict": {"flat": True, "because": []},
    }
    assert "memory, MB" in texts(plot.plots(soak)["soak"])


def test_a_report_without_cases_has_nothing_to_draw():
    assert plot.plots({"rows": []}) == {}
