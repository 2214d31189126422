"""An alarm when a served model rejects more than its audit said, with a bound on false alarms that never expires."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defended._io import atomic_write_text, canonical_json
from defended.arguments import number_in, whole_number
from defended.exceptions import StateError
from defended.serving.auditing.profile import near_answered
from defended.serving.auditing.record import AuditRecord, identity, read_model, read_record
from defended.serving.monitoring.evidence import Evidence, weigh
from defended.serving.monitoring.state import MonitorState, RecentVerdicts
from defended.serving.monitoring.test_martingale import RaisedRateProcess
from defended.statistics.intervals import Rate, clopper_pearson


@dataclass(frozen=True)
class Alarm:
    """When the monitor was convinced.

    Attributes:
        observed: verdicts seen until then, by this monitor.
        rejected: rejections among them.
        since: the verdict, counted from 1, where the evidence seems to have begun.
        log_value: logarithm of the capital.
    """

    observed: int
    rejected: int
    since: int
    log_value: float


class RejectionMonitor:
    """Watches verdicts for a rejection rate above the audited one.

    **What holds.** Suppose that the audit's inputs were drawn independently from a distribution in which a share p is
    rejected, and that later each verdict is a rejection with probability at most p, given all before it. Then
    the probability that this monitor ever raises an alarm, however long it runs and whenever one looks, is at most
    `false_alarm`.

    *Why.* The audit's c rejections of n give the one-sided Clopper-Pearson limit L, which is below p with probability
    at most `baseline_share * false_alarm`. Where it is not, the capital of `RaisedRateProcess(L)` reaches
    `1 / ((1 - baseline_share) * false_alarm)` with probability at most the other part (Ville's
    inequality). The sum is `false_alarm`.

    What does not hold: verdicts on one client's repeated input, or on bursts of similar inputs, are not such draws; to
    this monitor, a rise that such a burst brings is a rise like any other.

    Args:
        baseline: an audit, the path of its JSON, or its rejection rate.
        false_alarm: bound on the probability of ever raising an alarm without a raised rate, in (0, 0.5].
        baseline_share: part of it that pays for the audit's own uncertainty, in (0, 1).
        window: verdicts kept for finding what is behind an alarm.

    Attributes:
        limit: the rejection rate that is tested, the audit's upper limit.
        threshold: capital at which the alarm is raised.
        observed: verdicts so far.
        rejected: rejections among them.
        alarm: the alarm, or None; it stays.

    Raises:
        ValueError: an argument is out of its range, or the baseline says too little: nothing was audited, or its limit
            is so high that no rise can be seen.
    """

    def __init__(
        self,
        baseline: AuditRecord | Rate | str | os.PathLike[str],
        *,
        false_alarm: float = 0.01,
        baseline_share: float = 0.5,
        window: int = 4000,
    ):
        self.false_alarm = number_in("false_alarm", false_alarm, "(0, 0.5]")
        self.baseline_share = number_in("baseline_share", baseline_share, "(0, 1)")
        self.window = whole_number("window", window, 1, floats=True)
        self.baseline: AuditRecord | None = None
        if isinstance(baseline, Rate):
            self.rate = baseline
        else:
            self.baseline = baseline if isinstance(baseline, AuditRecord) else read_record(baseline)
            audited = self.baseline.rates.get("rejection_rate")
            if audited is None:
                raise ValueError("`baseline` must hold a `rejection_rate`; this audit has none.")
            self.rate = audited.rate()
        self._profile = None if self.baseline is None else self.baseline.profile
        if self.rate.total == 0:
            raise ValueError("`baseline` must be an audit of at least one input.")
        # Each end of a two-sided interval at confidence 1 - 2 a errs with probability at most a.
        error = self.baseline_share * self.false_alarm
        self.limit = clopper_pearson(self.rate.count, self.rate.total, 1 - 2 * error)[1]
        self.threshold = 1 / (self.false_alarm - error)
        self._process = RaisedRateProcess(self.limit)
        self.observed = self.rejected = 0
        self.alarm: Alarm | None = None
        self._recent = RecentVerdicts()
        # The verdict at which some rounds began, thinned out; tells where the evidence began.
        self._starts: list[tuple[int, int]] = []
        self._inputs: list[tuple[bool, np.ndarray]] = []

    def count(self, total: int, rejected: int) -> Alarm | None:
        """Take in verdicts of which only the numbers are known, as one round; return the alarm, if there is one."""
        if total:
            self._round(rejected, total)
        return self.alarm

    def watch(self, outputs: Mapping[str, np.ndarray], inputs: np.ndarray | None = None) -> Alarm | None:
        """Take in answers in their order, each verdict a round of its own; return the alarm, if there is one.

        Args:
            outputs: `label` `[n]` and, where they are reported, `scores` `[n, m]` and `reason` `[n]`.
            inputs: `[n, ...]`, where they are known.
        """
        label = np.asarray(outputs["label"])
        rejected = label < 0
        scores = outputs.get("scores")
        if scores is not None and self._profile is not None:
            edges = self._profile.margin_edges
            self._recent.add(self.observed, rejected, scores, outputs.get("reason"), edges, self.window)
        if inputs is not None and len(inputs) == len(rejected):
            self._inputs += list(zip(rejected.tolist(), inputs, strict=True))
            self._inputs = self._inputs[-self.window :]
        for verdict in rejected.tolist():
            self._round(int(verdict), 1)
        return self.alarm

    @property
    def log_value(self) -> float:
        """Logarithm of the capital: above `log(threshold)` the alarm is raised."""
        return self._process.log_value

    def evidence(self) -> Evidence:
        """Return the evidence for a drift and for an attack in recent verdicts, since the rise seems to have begun."""
        recent = self._recent.since(self._began())
        neighbours = None
        subject = None if self.baseline is None else self.baseline.subject
        if self._inputs and subject is not None and subject.epsilon is not None and subject.norm is not None:
            hurt, answered = ([x for was, x in self._inputs if was is side] for side in (True, False))
            if hurt and answered:
                neighbours = near_answered(np.stack(hurt), np.stack(answered), subject.epsilon, subject.norm)
        return weigh(self._profile, recent, neighbours)

    def status(self) -> dict[str, Any]:
        """Return where the monitor stands, ready for JSON; with an alarm, also the evidence."""
        status: dict[str, Any] = {
            "observed": self.observed,
            "rejected": self.rejected,
            "rejection_rate": self.rejected / self.observed if self.observed else None,
            "audited_rate": float(self.rate),
            "limit": self.limit,
            "false_alarm": self.false_alarm,
            "e_value": math.exp(min(self.log_value, 700.0)),
            "threshold": self.threshold,
            "alarm": None if self.alarm is None else vars(self.alarm),
        }
        return status | ({} if self.alarm is None else {"evidence": self.evidence().to_dict()})

    def save(self, path: str | os.PathLike[str], source: Mapping[str, Any] | None = None) -> Path:
        """Write the state, whole or not at all; inputs are not part of it.

        Args:
            path: path of the file.
            source: what the source of the verdicts needs to go on.
        """
        process = self._process
        state = MonitorState(
            settings=self._settings(),
            observed=self.observed,
            rejected=self.rejected,
            rounds=process.rounds,
            log_stakes=process.log_stakes.tolist(),
            log_starts=process.log_starts.tolist(),
            starts=self._starts,
            alarm=None if self.alarm is None else tuple(vars(self.alarm).values()),
            recent=self._recent,
            source=dict(source or {}),
        )
        return atomic_write_text(path, canonical_json(state.model_dump(mode="json")))

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Go on from a saved state, and return the source's part of it.

        Raises:
            StateError: the file cannot be read, is not a state, or is that of a monitor with another baseline or
                settings.
        """
        state = read_model(MonitorState, path, StateError, "a monitor's state", "To begin anew, remove it.")
        process = self._process
        size = len(process.log_stakes)
        if state.settings != self._settings() or len(state.log_stakes) != size or len(state.log_starts) != size:
            raise StateError(
                f"{path} is the state of a monitor with another baseline or other settings: its guarantee is not this "
                "one's. Give the same ones, or begin anew with another file."
            )
        process.rounds = state.rounds
        process.log_stakes, process.log_starts = np.array(state.log_stakes), np.array(state.log_starts)
        self.observed, self.rejected, self._starts = state.observed, state.rejected, state.starts
        self.alarm = None if state.alarm is None else Alarm(*state.alarm)
        self._recent = state.recent
        return state.source

    def _round(self, rejected: int, total: int) -> None:
        self._starts.append((self._process.rounds + 1, self.observed + 1))
        if len(self._starts) > 4096:
            self._starts = self._starts[::2]
        self._process.observe(rejected, total)
        self.observed += total
        self.rejected += rejected
        if self.alarm is None and self.log_value >= math.log(self.threshold):
            self.alarm = Alarm(self.observed, self.rejected, self._began(), self.log_value)

    def _began(self) -> int:
        if self.alarm is not None:
            return self.alarm.since
        start = self._process.start
        return max((verdict for number, verdict in self._starts if number <= start), default=1)

    def _settings(self) -> str:
        """Return a digest of everything that the guarantee is about."""
        content = {
            "baseline": None if self.baseline is None else identity(self.baseline),
            "rate": self.rate.to_dict(),
            "false_alarm": self.false_alarm,
            "baseline_share": self.baseline_share,
            "alternatives": self._process.up.tolist(),
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()
