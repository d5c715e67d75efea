from __future__ import annotations

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from harness.report.figures import ACCENT, INK, draw, log_axis, palette, plain, scientific, short


def paint(figure: Figure) -> None:
    axes = figure.subplots()
    axes.plot([0.0001, 0.0002], [1, 2], "o", color=ACCENT, label="a <b> & $c")
    axes.scatter([0.0001, 0.0002], [1, 2], color=INK)
    axes.set_xticks([0.0001, 0.0002], ["0.0001", "0.0002"])
    axes.legend()


def test_the_same_data_gives_the_same_bytes() -> None:
    assert draw("one", "t", "d", (4, 2), paint) == draw("one", "t", "d", (4, 2), paint)


def test_ids_differ_between_figures_and_every_reference_has_its_target() -> None:
    both = draw("one", "t", "d", (4, 2), paint) + draw("two", "t", "d", (4, 2), paint)
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', both)) <= set(ids)


def test_a_figure_is_announced_scales_and_asks_for_nothing() -> None:
    svg = draw("one", "Title & more", "Described", (4, 2), paint)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert [root.find(kind).text for kind in ("title", "desc")] == ["Title & more", "Described"]
    assert root.get("aria-labelledby").split() == [root.find(kind).get("id") for kind in ("title", "desc")]
    assert root.get("viewBox") == "0 0 288 144"  # 4 x 2 inches of 72 units
    assert "http" not in svg
    assert "font-family" not in svg


def test_colours_follow_the_page_and_labels_stay_as_they_are() -> None:
    svg = draw("one", "t", "d", (4, 2), paint)
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert {"0.0001", "0.0002", "a <b> & $c"} <= set(texts)
    assert "var(--accent)" in svg
    assert ACCENT not in svg


def test_twelve_labels_get_twelve_looks() -> None:
    labels = [f"family {index}" for index in range(12)]
    assert len(set(palette(labels).values())) == 12


def test_ticks_and_labels() -> None:
    assert scientific(0.00065) == "6.5e−4"
    assert scientific(0.001, 0) == "1e−3"
    assert [plain(value) for value in (0.001, 20.0, 1000.0, 1e-5)] == ["0.001", "20", "1,000", "1e−5"]
    assert short("a" * 30, 10) == "a" * 9 + "…"
    assert short("a" * 10, 10) == "a" * 10


def test_a_logarithmic_axis_has_few_ticks() -> None:
    axes = Figure().subplots()
    axes.plot([1e-6, 1e2], [0, 1])
    axes.set_xscale("log")
    log_axis(axes.xaxis, plain)
    assert 3 <= len([tick for tick in axes.get_xticks() if 1e-6 <= tick <= 1e2]) <= 9
    assert not axes.get_xticks(minor=True).size
