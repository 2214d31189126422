"""The tables and figures of Leino et al. 2022 (Degradation Attacks on Certifiably Robust Neural Networks), reproduced.

    from defended.attacks.paper import Settings, reproduce
    print(reproduce("table1", Settings(quick=True)))

What needs files that are not there (a data set, a net of the authors) is left out, and reported as such.
"""

from __future__ import annotations

from collections.abc import Callable

from defended.attacks.paper.lipschitz import figure2, figure4, table1, table3
from defended.attacks.paper.polytopes import table4, table5
from defended.attacks.paper.reproduction import Finding, Reproduction
from defended.attacks.paper.settings import Settings
from defended.attacks.paper.smoothed import figure3, table2

EXPERIMENTS: dict[str, Callable[[Settings], Reproduction]] = {
    experiment.__name__: experiment
    for experiment in (table1, table2, table3, table4, table5, figure2, figure3, figure4)
}


def reproduce(name: str, settings: Settings | None = None) -> Reproduction:
    """Reproduce a table or a figure of the paper.

    Args:
        name: `"table1"` to `"table5"`, `"figure2"` to `"figure4"`.
        settings: how much to do, and where the nets and data are.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"Unknown experiment {name!r}. Known: {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name](settings or Settings())


__all__ = ["EXPERIMENTS", "Finding", "Reproduction", "Settings", "reproduce"]
