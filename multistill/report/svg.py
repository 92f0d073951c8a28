"""Matplotlib figures as inline SVG with the colours, font and width of the page.

Figures are drawn in placeholder colours (`INK`, `STUDENT`, ...) that are replaced by CSS
variables in the SVG, so one drawing serves the light theme, the dark theme and print. Text stays
text: it can be selected, searched and read by screen readers.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

INK = "#010101"
MUTED = "#020202"
LINE = "#030303"
PAPER = "#040404"
TEACHER = "#050505"
STUDENT = "#060606"
CONTROL = "#070707"
BASELINE = "#080808"
ACCENT = "#090909"

WIDTH = 10.3
"""Inches of a figure as wide as the page's text."""
NARROW = 4.7
"""Inches of a figure on a narrow screen, where panels stand below each other."""

CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    TEACHER: "--teacher",
    STUDENT: "--student",
    CONTROL: "--control",
    BASELINE: "--baseline",
    ACCENT: "--accent",
}

ROLE_COLOURS = {
    "teacher": TEACHER,
    "student": STUDENT,
    "control": CONTROL,
    "baseline": BASELINE,
    "probe": BASELINE,
    "reference": BASELINE,
    "human": INK,
}

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Apply `STYLE` while drawing, without changing the caller's matplotlib settings."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def subplots(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """(figure, axes [rows, columns]) of a size in inches, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def dots(axis: Any, x: Any, y: Any, colour: str) -> None:
    """Small dots that are visible on light and on dark paper, where they overlap too.

    Their edge has the colour of the dot: an edge in the paper's colour eats a small dot up.
    """
    axis.plot(
        x,
        y,
        "o",
        color=colour,
        markersize=5.5,
        alpha=0.75,
        markeredgecolor=colour,
        markeredgewidth=0.8,
    )


def to_svg(figure: Any, name: str, description: str) -> str:
    """The figure as an `<svg>` element for inclusion in HTML.

    Args:
        name: unique on the page; prefix of the ids inside the figure.
        description: alternative text for screen readers.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    width = float(view.group(1).split()[2])
    label = html.escape(description, quote=True)
    text = re.sub(
        r"<svg[^>]*>",
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view.group(1)}" style="max-width: {width:.0f}pt" role="img" '
        f'aria-label="{label}">',
        text,
        count=1,
    )
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    # Most ids are never referenced; removing them makes the page a quarter smaller.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]+)"', lambda match: match.group(0) if match.group(1) in used else "", text
    )
    text = re.sub(r"font: ([^;\"]*?) ?'DejaVu Sans'[^;\"]*", _font, text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r">\s+<", "><", text).strip()


def _font(match: re.Match[str]) -> str:
    """Split the CSS `font` shorthand into size and weight, so the page's family is inherited."""
    size = re.search(r"([\d.]+)px", match.group(1))
    weight = "bold" if re.search(r"\b(bold|700)\b", match.group(1)) else "normal"
    assert size is not None
    return f"font-size: {size.group(1)}px; font-weight: {weight}"
