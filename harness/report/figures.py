"""Figures as inlined SVG: small, accessible, the same bytes for the same data, in the page's own colours and fonts.

Colours that depend on light or dark are drawn as sentinels and become CSS variables; ids are made unique per figure.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.records.codec import fingerprint
from harness.report.markup import Html, details, scrolling, tag
from harness.report.words import MINUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colours that no palette contains: each becomes a CSS variable, so that a figure follows light and dark mode.
INK, MUTED, GRID, SURFACE, ACCENT = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface", ACCENT: "--accent"}
WIDTH_IN = 8.6
"""Figures are as wide as the page's column; 72 SVG units per inch."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "*")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "text.parse_math": False,  # a dollar sign in a family's name is no formula
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.facecolor": "none",
}


def draw(name: str, title: str, description: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Html:
    """An inlined SVG.

    Args:
        name: Unique within the page; prefixes every id.
        title: What a screen reader announces first.
        description: What the figure shows, in words.
        size: Width and height in inches.
        paint: Draws onto the empty figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    buffer = io.BytesIO()
    # Date and creator would differ from run to run and from version to version.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Without a salt matplotlib names its clip paths at random.
    style: Any = _STYLE | {"svg.hashsalt": name}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's browser has other fonts
        engine = ConstrainedLayoutEngine(h_pad=0.07)
        figure = NewFigure(figsize=size, layout=engine)
        paint(figure)
        for axes in figure.axes:
            _few_ticks(axes)
        engine.execute(figure)
        figure.set_layout_engine("none")  # else savefig draws everything once more, to lay it out
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _inline(buffer.getvalue().decode(), f"f{fingerprint(name)[:8]}", title, description)


def _few_ticks(axes: Axes) -> None:
    """Six intervals at most on a linear axis: enough to read a value, and labels never touch."""
    from matplotlib.ticker import AutoLocator

    for axis in (axes.xaxis, axes.yaxis):
        locator = axis.get_major_locator()
        if isinstance(locator, AutoLocator):
            locator.set_params(nbins=6)


def figure(svg: Html, title: str, caption: str, data: Html) -> Html:
    """A figure with its headline and explanation above, and its data on demand.

    Args:
        svg: As `draw` gives it.
        title: The headline.
        caption: What the marks mean, in a sentence or two.
        data: A table of what is drawn, for readers who cannot see the figure.
    """
    head = tag("figcaption", tag("strong", title), tag("span", caption))
    return tag("figure", head, scrolling(svg, title), details("Data as a table", data))


def palette(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour of the colour-blind safe palette and a marker for each label; the pair is unique up to 12 labels."""
    import seaborn as sns

    colors = sns.color_palette("colorblind").as_hex()
    return {label: (colors[index % len(colors)], MARKERS[index % len(MARKERS)]) for index, label in enumerate(labels)}


def rows_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Turn the y axis into one horizontal row per label, the first on top.

    Args:
        axes: Whose y data are row numbers from 0.
        labels: Of the rows; cut where they are too long.
    """
    axes.set_yticks(range(len(labels)), [short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def short(label: str, limit: int = 26) -> str:
    """A label cut to what fits beside an axis.

    Args:
        label: Of any length.
        limit: Characters, the ellipsis included.
    """
    return label if len(label) <= limit else label[: limit - 1] + "…"


def baselines(axes: Axes, chance: float | None, majority: float | None, factor: float, upright: bool) -> None:
    """Mark what a model gets that has learned nothing: a dotted line at chance, a dash-dotted one at one answer to everything.

    Args:
        axes: Of scores.
        chance: Score of guessing; None where unknown.
        majority: Score of the answer that is most often right; None where unknown.
        factor: What a score is multiplied with on the axis.
        upright: Whether scores run along the x axis.
    """
    for value, style in ((chance, ":"), (majority, "-.")):
        if value is not None:
            draw_line = axes.axvline if upright else axes.axhline
            draw_line(value * factor, color=MUTED, linestyle=style, linewidth=1.1, zorder=1)


def baselines_in_words(chance: str | None, majority: str | None) -> str:
    """What those lines mean, as sentences for a caption; nothing where there are none.

    Args:
        chance: Level of guessing.
        majority: Level of the answer that is most often right.
    """
    dotted = f" The dotted line is chance{f' ({chance})' if chance else ''}." if chance is not None else ""
    what = "the most frequent right answer, given to every item"
    return dotted + (
        f" The dash-dotted line is {what}{f' ({majority})' if majority else ''}." if majority is not None else ""
    )


def log_axis(axis: Axis, form: Callable[[float], str]) -> None:
    """Give a logarithmic axis at most seven labelled ticks and no minor ones.

    Args:
        axis: An x or y axis of matplotlib, its data drawn already.
        form: Writes a tick's value.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    # On less than two decades powers of ten alone would leave one or two ticks: 1, 2 and 5 times them are shown too.
    subs = (1.0,) if low > 0 and high / low > 50 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def plain(value: float) -> str:
    """A tick of a scale of seconds: 0.001 to 9,999 written out."""
    return f"{value:,g}" if 1e-3 <= value < 1e4 else scientific(value, 0)


def scientific(value: float, digits: int = 1) -> str:
    """A learning rate: 6.5e−4.

    Args:
        value: Positive.
        digits: After the decimal point.
    """
    return f"{value:.{digits}e}".replace("e-0", f"e{MINUS}").replace("e-", f"e{MINUS}").replace("e+0", "e")


def _inline(svg: str, name: str, title: str, description: str) -> Html:
    """The drawing alone: no prolog, metadata, namespaces, fixed size or fonts; unique ids; variables for colours."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    # Most ids are never referred to, and would only take space.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r"<[^>]*>", lambda match: _shrink(match[0], name, used), body)  # tags only: labels stay as they are
    # Between tags white space only costs bytes; inside a label it is kept.
    body = re.sub(r">\s+<", "><", body)
    body = re.sub(r'(?:<use [^>]*? style="([^"]*)"/>)(?:<use [^>]*? style="\1"/>)+', _hoist, body)
    head = tag("title", title, id=f"{name}-t") + tag("desc", description, id=f"{name}-d")
    width = float(box[1].split()[2]) if box else 0.0
    style = f"min-width:{0.95 * width:.0f}px;max-width:{1.45 * width:.0f}px"  # labels stay readable, never huge
    view = f'viewBox="{box[1] if box else ""}" style="{style}"'
    return Html(f'<svg {view} role="img" aria-labelledby="{name}-t {name}-d">{head}{body.strip()}')


def _hoist(marks: re.Match[str]) -> str:
    """Marks of one style carry it once, in a group: it is most of their bytes."""
    style = f' style="{marks[1]}"'
    return f"<g{style}>{marks[0].replace(style, '')}</g>"


def _shrink(element: str, name: str, used: set[str]) -> str:
    """One tag of the drawing: ids kept where used and prefixed, numbers at two decimals, the page's font and colours."""
    element = re.sub(
        r' id="([^"]+)"',
        lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "",
        " ".join(element.split()),
    )
    element = (
        element.replace("xlink:href", "href").replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    )
    element = re.sub(r"font-family: [^;]*;? ?| ?transform=\"rotate\(-0 [^\"]*\"", "", element)
    element = re.sub(
        r"(?<![\w#-])-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), element
    )
    for color, variable in _VARIABLES.items():
        element = element.replace(color, f"var({variable})")
    return element
