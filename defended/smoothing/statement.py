"""What a smoothed model guarantees, in words, for its manifest and its reports."""

from __future__ import annotations

from typing import Any


def method_of(model: Any) -> str:
    """Return the method in one line, with its parameters."""
    bound = "one Clopper–Pearson bound" if model.mode == "fixed" else "confidence sequence (Ville), capped at n"
    return (
        f"randomized smoothing (Cohen et al. 2019): sigma={model.sigma:g}, n0={model.selection_samples}, "
        f"n={model.samples}, alpha={model.alpha:g}, {bound}"
    )


def assumptions_of(model: Any) -> tuple[str, ...]:
    """Return the guarantee, its probability, and what it rests on."""
    statements = (
        "Distances are Euclidean (l2) on the model's input, in the units of that input.",
        f"What is answered is the smoothed classifier's class, and it does not change within the radius, with "
        f"probability at least {1 - model.alpha:g} over the noise, for each answer on its own; among many answers a "
        f"share of {model.alpha:g} may be wrong, and whoever may ask again and again will see such a one.",
        "The noise is as good as independent normal numbers that nobody knows beforehand: Philox or ThreeFry, 64 bits "
        "of seed a call from the system's entropy, Box and Muller's transform in float32. The inputs of one call share "
        "it. Nobody may choose an input after having seen the noise that it is judged with.",
        "The network votes as a function of the noisy input, rounded to float32; that the noise of float32 is "
        "discrete, and its tails end at some 5.6 sigma, is not counted.",
    )
    if model.precision == "float32":
        return statements
    return (
        *statements,
        f"The network is evaluated in {model.precision}. The certificate is about that network; accuracy, radii and "
        f"attacks measured in float32 do not carry over.",
    )
