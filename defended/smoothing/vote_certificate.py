"""The certificate of a smoothed model: a vote under noise, proven when it is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops

from defended.certificate import Array, Certificate, Claims, Finding, Judge
from defended.margins import finite_rows
from defended.networks.inputs import float32_array, float32_tensor
from defended.progress import Forecast
from defended.settings import Settings
from defended.smoothing.bounds import radius_ceiling, smallest_samples
from defended.smoothing.budget import rows_at_once
from defended.smoothing.cost import Cost, cost
from defended.smoothing.deterministic import require_deterministic
from defended.smoothing.gate import Gate, fixed_gate
from defended.smoothing.sequential import sequential_gate
from defended.tracing import CompiledFunctions, outside_of_graphs

GATES = {"fixed": fixed_gate, "sequential": sequential_gate}
_MEASURED = 4


@dataclass(eq=False, kw_only=True)
class VoteCertificate(Certificate):
    """CERTIFY (Cohen et al. 2019): draws choose a candidate, further draws bound its probability from below.

    Arguments are those of `SmoothedNet`, and

    Args:
        network: the undefended classifier.
        settings: the model's, for epsilon.
        compiled: compiles functions of the model.
    """

    network: keras.Model
    settings: Settings
    compiled: CompiledFunctions
    sigma: float
    samples: int
    selection_samples: int
    alpha: float
    mode: str
    seed: int | None
    max_batch: int | None
    precision: str
    attack_samples: int
    _gate_radius: float = field(init=False)
    """The epsilon that the gate was made for."""

    at_run_time = True

    def __post_init__(self) -> None:
        self.make_gate()
        self.retrace(self.network)

    # What the noise can prove.

    @property
    def radius_ceiling(self) -> float:
        """The largest radius that any input can have."""
        return radius_ceiling(self.sigma, self.samples, self._final_alpha)

    @property
    def _final_alpha(self) -> float:
        return self.alpha / 2 if self.mode == "sequential" else self.alpha

    @property
    def radius(self) -> float:
        """Epsilon as it is now."""
        with outside_of_graphs():
            return float(ops.convert_to_numpy(self.settings.epsilon))

    @property
    def gate(self) -> Gate:
        """The thresholds and radii of epsilon as it is now.

        Where the variable was moved to what the number of samples can never certify, they are those of before: no
        radius that they prove exceeds such an epsilon, so nothing is answered.
        """
        if self._gate_radius != self.radius:
            with contextlib.suppress(ValueError):
                self.make_gate()
            self._gate_radius = self.radius
            self.compiled.clear()
        return self._gate

    def make_gate(self) -> None:
        """Compute thresholds for epsilon as it is now; raise a ValueError where it can never be certified."""
        epsilon = self.radius
        if not self.radius_ceiling > epsilon:
            enough = smallest_samples(epsilon, self.sigma, self._final_alpha)
            remedy = f"Take samples >= {enough}" if enough else f"Take a sigma above {self.sigma:g}"
            raise ValueError(
                f"samples={self.samples} can never certify epsilon={epsilon:g} at sigma={self.sigma:g}, "
                f"alpha={self.alpha:g} (mode {self.mode!r}): the radius of a unanimous vote is "
                f"{self.radius_ceiling:.6g}. {remedy}, or defend a smaller radius."
            )
        self._gate = GATES[self.mode](epsilon, self.sigma, self.samples, self.alpha)
        self._gate_radius = epsilon

    # Judging.

    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        """Return shares of the votes as logits, and as slack the share beyond those that would just not answer."""
        found = self._sampled(inputs, deployed)
        drawn = ops.cast(ops.maximum(found.drawn, 1), "float32")
        # The gate decided by whole numbers. Where epsilon has become larger since, what it proved may not be enough.
        answered = found.radius > epsilon
        margin = ops.where(answered, ops.maximum(found.margin, 1), ops.minimum(found.margin, 0))
        # Without noise: what can be compared from one machine to another.
        logits = self.sampler.logits(inputs)
        logits = ops.where(finite_rows(logits)[:, None], logits, 0.0)
        return Finding(
            ops.cast(found.counts, "float32") / drawn[:, None],
            ops.cast(margin, "float32") / drawn,
            lambda: found.radius,
            found.drawn > 0,
            {"samples_used": found.samples_used, "logits": logits},
        )

    def _sampled(self, inputs: Any, deployed: bool) -> Any:
        gate = self.gate

        def sample(inputs: Any) -> Any:
            return self.sampler.decide(inputs, self.seed_for(inputs, fresh=deployed), gate)

        # Eagerly, a loop would run its thousands of rounds in Python.
        return self.compiled("sample fresh" if deployed else "sample", sample)(inputs)

    def seed_for(self, inputs: Any, fresh: bool = False) -> Any:
        """Return the seed of a call's noise, `[2]` int32: fresh entropy, or a function of `seed` and of the inputs."""
        from defended.smoothing.sampler import fresh_seed, seed_of

        return fresh_seed() if fresh or self.seed is None else seed_of(self.seed, inputs)

    def counts(self, inputs: Any, number: int) -> Array:
        """Return the votes `[n, m]` of so many draws for inputs `[n, ...]`."""

        def count(inputs: Any, number: Any) -> Any:
            return self.sampler.count(inputs, number, self.seed_for(inputs))

        return ops.convert_to_numpy(self.compiled("count", count)(float32_tensor(inputs), ops.array(number)))

    def cost(self, inputs: Array) -> Cost:
        """Return what an answer to inputs such as these `[n, ...]` costs."""
        return cost(self.counts, self.gate, self.selection_samples, inputs)

    def forecast(self, inputs: Array, answers: int) -> Forecast | None:
        kept = self.compiled.kept
        if "cost" not in kept and len(inputs):
            kept["cost"] = self.cost(float32_array(inputs[:_MEASURED]))
        return kept["cost"].of(answers) if "cost" in kept else None

    def logits(self, inputs: Any, training: bool) -> Any:
        """Return the network's logits without noise, in the precision in which votes are taken."""
        if training:
            refuse_training()
        return self.sampler.logits(inputs)

    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        """Estimate radii `[batch, m]` from soft votes under the same noise at every call; differentiable in x."""
        import tensorflow as tf

        from defended.smoothing.estimate import estimate_competitor_radii, standard_noise

        kept, shape = self.compiled.kept, self.network.input_shape[1:]
        if "noise" not in kept:
            with outside_of_graphs():
                kept["noise"] = self.sigma * standard_noise(self.attack_samples, shape)
        noisy = tf.reshape(inputs[:, None] + kept["noise"][None], [-1, *shape])
        logits = self.sampler.logits(noisy)
        logits = tf.reshape(logits, [-1, self.attack_samples, logits.shape[-1]])
        return estimate_competitor_radii(logits, self.sigma)

    def covered_drift(self, inputs: Any) -> Array:
        """Return infinity, `[n, m]`: votes are those of the deployed evaluation, and the certificate is about it."""
        return np.full((len(inputs), self.sampler.num_classes), np.inf)

    def unexplained(self, own: Array, votes: int, outputs: Mapping[str, Array]) -> Array:
        """Return indices of inputs whose shares in `outputs` differ from `own`, of so many `votes`, beyond chance.

        The deployed graph stopped at one of K checkpoints t. By Hoeffding's inequality, and a union over
        checkpoints, inputs and classes, equal models show a difference above `sqrt(l / 2t) + sqrt(l / 2 votes)`,
        `l = log(4 K n m / 1e-9)`, with probability at most 1e-9. An answer without a radius above epsilon, or such a
        radius without an answer, disagrees as well.
        """
        log = np.log(4e9 * len(self.gate.checkpoints) * max(own.size, 1))
        drawn = np.maximum(outputs["samples_used"] - self.selection_samples, 1)
        allowed = np.sqrt(log / (2 * drawn)) + np.sqrt(log / (2 * votes))
        apart = np.abs(outputs["scores"] - own).max(axis=1, initial=0.0) > allowed
        above = outputs["certified_radius"] > np.float32(self.radius)
        return np.flatnonzero(apart | (above != (outputs["label"] >= 0)))

    # Training and proving: there is nothing to learn from votes, and nothing to prove in advance.

    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        """Return the votes, which are not estimates; while training, refuse."""
        if training:
            refuse_training()
        found = self.judge(inputs, epsilon)
        return found.logits, found.slack

    def retrace(self, network: keras.Model) -> None:
        from defended.smoothing.sampler import Sampler

        super().retrace(network)
        self.sampler = Sampler(network, self.sigma, self.selection_samples, self._rows, self.precision)

    def _rows(self) -> int:
        """Return how many noisy inputs are evaluated at a time."""
        return self.max_batch or rows_at_once(self.sampler)

    def prove(self, claims: Claims) -> None:
        """Prove nothing: a vote is proven when it is taken."""

    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        """Check that the network is a function of its input, as voting requires."""
        require_deterministic(self.network)


def refuse_training() -> NoReturn:
    """Raise a RuntimeError: votes have no gradient."""
    raise RuntimeError(
        "A smoothed model's votes have no gradient to train by. Train its network under the same noise, then smooth "
        "it: `defended.smoothing.train_noisy(model.network, x, y, sigma=model.sigma)`."
    )
