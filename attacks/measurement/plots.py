"""The pictures of the paper, drawn with matplotlib: VRA and FPR over the radius, and degraded pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from defended.attacks.core.checks import Array
from defended.attacks.measurement.records import Records
from defended.class_names import ClassNames, in_order
from defended.figure_style import COLOURS, GRID, INK, NORMS, STYLE, draw_bracket, draw_frame
from defended.statistics.rates import fpr_upper_curve, vra_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from defended.attacks.measurement.result import Susceptibility


CAPTION_WIDTH = 18
"""Characters in a line above a picture of `draw_pairs`."""


def plot_vra(results: Susceptibility | Mapping[str, Susceptibility], radii: ArrayLike | None = None) -> Figure:
    """Plot the VRA at every radius that a model could be deployed at (figure 2 of Leino et al. 2022).

    A marker shows the model's own radius, and below it what the attack leaves of the VRA there.

    Args:
        results: a measurement, or several by name.
        radii: the radii to draw, in input units; None for up to three times the largest radius defended.
    """

    def curve(records: Records, radii: Array) -> Array:
        return vra_curve(records.radius, np.equal(records.label, records.predicted), radii)

    return _over_radii(results, radii, "VRA, % of inputs", curve, ("vra_under_attack", "vra"))


def plot_fpr(results: Susceptibility | Mapping[str, Susceptibility], radii: ArrayLike | None = None) -> Figure:
    """Plot the upper bound on the false positive rate at every radius that a model could be deployed at (figure 3).

    A bar at the model's own radius reaches down to the lower bound that the attack proves there.

    Args: as for `plot_vra`.
    """

    def curve(records: Records, radii: Array) -> Array:
        return fpr_upper_curve(records.radius, radii)

    return _over_radii(results, radii, "FPR, % of answers, at most", curve, ("fpr_lower", "fpr_upper"))


class Pair(NamedTuple):
    """An input that was answered, and the same perturbed and rejected."""

    original: Array
    """`[*input shape]`."""
    perturbed: Array
    answer: str
    """What the original is answered."""
    size: float
    """The norm of the change."""


def plot_pairs(x: Any, result: Susceptibility, count: int = 6, class_names: ClassNames | None = None) -> Figure:
    """Plot inputs that were answered, the same perturbed and rejected, and the differences (figure 4), smallest first.

    Args:
        x: `[n, *input shape]`, the inputs that were measured.
        result: the measurement.
        count: largest number of pairs.
        class_names: what the classes are called, in the order of their numbers or as a mapping; the numbers by default.

    Raises:
        ValueError: when nothing was degraded.
    """
    pairs = degraded_pairs(x, result, count, class_names)
    if not pairs:
        raise ValueError("`result` holds no degraded input: there is no pair to show.")
    return draw_pairs(pairs)


def degraded_pairs(x: Any, result: Susceptibility, count: int, class_names: ClassNames | None = None) -> list[Pair]:
    """Return the pairs that `plot_pairs` draws: those with the smallest changes, none where nothing was degraded."""
    names = in_order(class_names)
    records, index = result.records, result.adversarial.index
    order = np.argsort(records.distance[index], kind="stable")[:count]
    perturbed = result.adversarial.inputs[order]
    return [
        Pair(np.asarray(x[row]), after, name_of(records.predicted[row], names), float(records.distance[row]))
        for row, after in zip(index[order], perturbed, strict=True)
    ]


def name_of(label: int, class_names: Sequence[str] | None) -> str:
    """Return what a class is called: its number, where there are no names or too few."""
    return str(label) if class_names is None or label >= len(class_names) else class_names[label]


def draw_pairs(pairs: Sequence[Pair]) -> Figure:
    """Draw columns of an original, the perturbed input and their difference, with captions."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    images = [image for pair in pairs for image in (pair.original, pair.perturbed)]
    low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
    differences = [pair.perturbed - pair.original for pair in pairs]
    scale = max(float(np.abs(difference).max()) for difference in differences)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.45 * len(pairs) + 0.9, 5.0), layout="constrained")
        grid = np.atleast_2d(figure.subplots(3, len(pairs), squeeze=False))
        for column, (pair, difference) in enumerate(zip(pairs, differences, strict=True)):
            _show(grid[0, column], pair.original, low, high, textwrap.fill(f"answers {pair.answer}", CAPTION_WIDTH))
            _show(grid[1, column], pair.perturbed, low, high, "rejects: ⊥")
            size = f"‖δ‖ = {pair.size:.3g}"
            _show(grid[2, column], strongest_channel(difference), -scale, scale, size, "RdBu_r")
        for row, name in enumerate(("original", "perturbed", f"difference\n±{scale:.2g}")):
            grid[row, 0].set_ylabel(name, fontweight="bold")
    return figure


def _over_radii(
    results: Any, radii: Any, label: str, curve: Callable[[Records, Array], Array], bracket: tuple[str, str]
) -> Figure:
    """Draw a curve for each measurement, and at its own radius the bracket between two of its rates."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    named = dict(results) if isinstance(results, Mapping) else {"": results}
    if not named:
        raise ValueError("There is nothing to plot: `results` is empty.")
    norms = {result.norm for result in named.values()}
    if len(norms) > 1:
        raise ValueError(f"Radii of different norms cannot share an axis. Received: {sorted(norms)}")
    if radii is None:
        radii = np.linspace(0, 3 * max(result.epsilon for result in named.values()), 301)
    radii = np.asarray(radii, np.float64)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
    axes.set(xlim=(0, radii[-1]), ylim=(0, 100), xlabel=f"radius ε ({NORMS[norms.pop()]}, input units)", ylabel=label)
    draw_frame(axes)
    for colour, (name, result) in zip(COLOURS * len(named), named.items(), strict=False):
        axes.plot(radii, 100 * curve(result.records, radii), color=colour, label=name, lw=2.2)
        low, high = (100 * getattr(result, rate) for rate in bracket)
        draw_bracket(axes, result.epsilon, low, high, colour)
    if list(named) != [""]:
        axes.legend(frameon=False)
    return figure


def _show(axes: Axes, image: Array, low: float, high: float, caption: str, colours: str = "gray") -> None:
    picture = as_picture(image)
    if picture.ndim == 3:
        picture = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="none", aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.set_title(caption, fontsize=9, color=INK)
    axes.spines[:].set_color(GRID)


def as_picture(values: Array) -> Array:
    """Return `[h, w]` or `[h, w, 3]` as it is; anything else as nearly square rows of its values, the rest empty."""
    if values.ndim == 3 and values.shape[-1] == 1:
        return values[..., 0]
    if values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3):
        return values
    width = int(np.ceil(np.sqrt(values.size)))
    padded = np.full(width * -(-values.size // width), np.nan, dtype=values.dtype)
    padded[: values.size] = values.ravel()
    return padded.reshape(-1, width)


def strongest_channel(difference: Array) -> Array:
    """Return a colour image's signed change in the channel that changes most, so that no change cancels another."""
    if difference.ndim != 3 or difference.shape[-1] == 1:
        return difference
    strongest = np.abs(difference).argmax(axis=-1)[..., None]
    return np.take_along_axis(difference, strongest, axis=-1)
