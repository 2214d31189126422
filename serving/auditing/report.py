"""The report of an audit: its figures, and the files that they are written to."""

from __future__ import annotations

import os
from pathlib import Path

from defended._io import atomic_write_bytes
from defended.figure_style import to_png
from defended.serving.auditing.clean import Curves
from defended.serving.auditing.figures import AuditFigures
from defended.serving.auditing.junit import to_junit
from defended.serving.auditing.pictures import draw_degraded_pairs, draw_radius_curves
from defended.serving.auditing.replay import AttackFindings, DegradedPair
from defended.serving.auditing.report_page import render

__all__ = ["AttackFindings", "AuditReport", "Curves", "DegradedPair"]


class AuditReport(AuditFigures):
    """The figures of an audit; rates are numbers with a Clopper–Pearson `interval`, `count` and `total` each.

    Epsilon is the radius defended. What the target does not report is None: an endpoint without the signature `audit`
    gives no radii, a request log no labels.

    Attributes:
        subject: what was audited.
        data: the data's `name`, the number of `points`, the `sha256` of inputs and labels, and whether the manifest
            lists them as `training_data`.
        created: when it was made, in UTC.
        confidence: confidence level of the intervals.
        rejection_rate: inputs rejected although nobody perturbed them.
        clean_accuracy: inputs whose largest score is the right class, rejected or not.
        accuracy_on_answered: right answers among the answers.
        vra: inputs answered rightly, certified at epsilon.
        vra_2eps: the same at 2 epsilon, as if the model were deployed there.
        always_answered: inputs whose availability radius exceeds epsilon, right or wrong.
        fpr_upper: answered inputs that are not always answered: at most this many can be forced into rejections.
        fpr_upper_correct: the same among the rightly answered inputs, as the paper's code counts.
        availability: quantiles of the availability radius, within which an input stays answered, by probability.
        curves: VRA and FPR bound over the radius.
        strata: rejection by kind of stratum (`class`, `confidence`, for a log also `version` and `time`).
        advice: what other radii would give.
        draws: the noise draws that an input took; None for a model that draws none.
        attack: what replayed inputs did.
        black_box: what the attack on the endpoint did.
        conditions: limits on figures.
        baseline: an earlier audit to compare with.
        contradictions: answers that contradict themselves, by the names of `contradictions.NAMES`.
        profile: what a monitor compares later traffic with.
        units: what shows that the inputs are in other units than the training's, in a sentence; None where nothing
            does, or the range of training is not recorded.
        unknown: what this audit cannot tell, in sentences.
        assumptions: what its figures rest on besides the certificate, in sentences.
        queries: inputs sent.
    """

    def __repr__(self) -> str:
        rates = {"rejected": self.rejection_rate, "VRA": self.vra, "FPR at most": self.fpr_upper}
        said = ", ".join(f"{name} {float(rate):.1%}" for name, rate in rates.items() if rate is not None)
        radius = "" if self.subject.epsilon is None else f" at eps={self.subject.epsilon:g}"
        return f"<AuditReport of {self.subject.name!r} on {self.data['points']} inputs{radius}: {said}>"

    def to_junit(self) -> str:
        """Return the conditions as JUnit XML."""
        return to_junit(self)

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        return render(self)

    def write(self, directory: str | os.PathLike[str]) -> dict[str, Path]:
        """Write the report into a directory, each file whole or not at all; files of an earlier report are replaced.

        Returns:
            The paths, by name: `audit.json`, `report.html`, `junit.xml`; `radius_curves.png` where there are radii, and
            `degraded_pairs.png` where an attack found any.
        """
        folder = Path(directory)
        pictures = {"radius_curves.png": draw_radius_curves(self), "degraded_pairs.png": draw_degraded_pairs(self)}
        files = {name: to_png(figure) for name, figure in pictures.items() if figure is not None}
        for name in set(pictures) - set(files):
            (folder / name).unlink(missing_ok=True)
        files["report.html"] = self.to_html().encode()
        files["junit.xml"] = self.to_junit().encode()
        files["audit.json"] = self.to_json().encode()
        return {name: atomic_write_bytes(folder / name, content) for name, content in files.items()}
