"""SmoothedNet: randomized smoothing as a Keras model that rejects (Cohen, Rosenfeld, Kolter 2019)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.arguments import positive_number, whole_number
from defended.defended_model import DefendedModel, Judgement
from defended.gate import ProvingProperty, outside_of_graphs
from defended.margins import finite_rows, leader
from defended.networks.checks import checked_radius
from defended.networks.inputs import float32_tensor, whole_batch_size
from defended.smoothing.bounds import (
    MAX_SAMPLES,
    binomial_p_value,
    checked_alpha,
    radius_ceiling,
    smallest_samples,
)
from defended.smoothing.budget import rows_at_once
from defended.smoothing.deterministic import require_deterministic
from defended.smoothing.gate import Gate, fixed_gate
from defended.smoothing.sequential import sequential_gate
from defended.smoothing.statement import assumptions_of, method_of

Array = np.ndarray[Any, np.dtype[Any]]

_GATES = {"fixed": fixed_gate, "sequential": sequential_gate}
_PRECISIONS = ("float32", "bfloat16", "float16")
_COMPARED = 1000


@keras.saving.register_keras_serializable(package="defended")
class SmoothedNet(DefendedModel):
    """A classifier that answers with the majority of its network's votes under Gaussian noise, where that is proven.

    The smoothed classifier is `g(x) = argmax over c of P(network(x + sigma * N) = c)`. CERTIFY: `selection_samples`
    draws choose a candidate class; further draws bound its probability from below by p, at confidence 1 - alpha; the
    certified l2 radius is `R = sigma * Phi^-1(p)`. The model answers the candidate where `R > epsilon`, and rejects
    otherwise; p <= 1/2, which is CERTIFY's abstention, has radius 0.

    **Guarantee.** For each input on its own: with probability at least 1 - alpha over the noise, an answer is g(x), and
    g does not change within the radius given (theorem 1 of the paper). Another call draws other noise and may answer
    where this one rejected, or reject where this one answered.

    `model(x)` is `[batch, m + 1]`: the classes' shares of the votes, and for ⊥ the share that the leader had to exceed.
    They have no gradient. `competitor_radii` has one, and is an estimate.

    `mode="fixed"` is the paper's procedure: `samples` draws for each input. `mode="sequential"` looks earlier, by a
    confidence sequence that holds at alpha whenever it stops (`defended.smoothing.sequential`): easy inputs take a
    hundred draws, inputs near the threshold all `samples`. Its radius is what was proven when it stopped, just above
    epsilon or more; an input that was given up early has radius 0. Measure radii and availability in mode `"fixed"`.

    The network needs no rule and no bound: any one will do that computes a function of its input. Batch normalisation
    and dropout act as at inference. Train it under the same noise, or its votes will be scattered.

    Args:
        network: a built Keras model with one input and logits `[batch, m]` out.
        epsilon: the l2 radius defended at run time, in input units; positive.
        sigma: standard deviation of the noise, in the same units; positive.
        samples: draws that bound the candidate's probability, n; in mode `"sequential"` at most so many.
        selection_samples: draws that choose the candidate, n0.
        alpha: probability of a wrong certificate, for each answer.
        mode: `"fixed"` or `"sequential"`.
        seed: None draws fresh entropy at every call, as service needs it. A number makes the noise of a call a function
            of it and of the content of the batch, so that an experiment repeats to the bit. An export is always fresh.
        max_batch: the most noisy inputs that are evaluated at a time, the memory budget; None for up to 1024 on a CPU,
            and for what the device is found to like on a GPU.
        precision: `"float32"`, or `"bfloat16"` or `"float16"` to evaluate the network in. The noise is drawn and added
            in float32 all the same. What is certified is then the network in that precision, another one than in
            float32: figures of the one do not hold for the other.
        attack_samples: draws behind `competitor_radii`.

    Raises:
        ValueError: for an argument out of range; samples that can never certify epsilon at alpha (the message says how
            many could); a network that is random or depends on the rest of the batch at inference.
        RuntimeError: when Keras does not run on TensorFlow.

    Example:
        >>> model = SmoothedNet(network, epsilon=0.25, sigma=0.25, mode="sequential")
        >>> model.verdicts(x_test).rejected.mean()
    """

    details = ("samples_used", "logits")

    def __init__(
        self,
        network: Any,
        epsilon: float,
        sigma: float,
        samples: int = 100_000,
        selection_samples: int = 100,
        alpha: float = 0.001,
        *,
        mode: str = "fixed",
        seed: int | None = None,
        max_batch: int | None = None,
        precision: str = "float32",
        attack_samples: int = 32,
        name: str | None = None,
        **kwargs: Any,
    ):
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"Smoothing samples with TensorFlow Probability, and Keras runs on {keras.backend.backend()!r}. Set "
                f"the variable KERAS_BACKEND=tensorflow before Keras is imported; a saved network can be loaded there."
            )
        self.sigma = positive_number("sigma", sigma, "in input units")
        self.alpha = checked_alpha(alpha)
        self.samples = whole_number("samples", samples, 1, MAX_SAMPLES, floats=True)
        self.selection_samples = whole_number("selection_samples", selection_samples, 1, MAX_SAMPLES, floats=True)
        self.attack_samples = whole_number("attack_samples", attack_samples, 1, MAX_SAMPLES, floats=True)
        self.max_batch = (
            None if max_batch is None else whole_number("max_batch", max_batch, 1, MAX_SAMPLES, floats=True)
        )
        self.seed = None if seed is None else whole_number("seed", seed, 0, 2**62, floats=True)
        if mode not in _GATES:
            raise ValueError(f"`mode` must be 'fixed' or 'sequential'. Received: {mode!r}")
        if precision not in _PRECISIONS:
            raise ValueError(f"`precision` must be one of {', '.join(_PRECISIONS)}. Received: {precision!r}")
        self.mode, self.precision = mode, precision
        super().__init__(network, epsilon=epsilon, norm="l2", name=name, **kwargs)
        self.supports_jit = False  # the loop's shapes follow what is still undecided
        self._make_gate(self._radius())
        self.finalize()

    # What the noise can prove.

    @property
    def radius_ceiling(self) -> float:
        """`sigma * Phi^-1(alpha^(1/n))`, the largest radius that any input can have; alpha/2 in mode `"sequential"`."""
        return radius_ceiling(self.sigma, self.samples, self._final_alpha)

    @property
    def _final_alpha(self) -> float:
        return self.alpha / 2 if self.mode == "sequential" else self.alpha

    @property
    def gate(self) -> Gate:
        """The thresholds and radii in use, see `defended.smoothing.Gate`: those of epsilon as it is now.

        Where the variable was moved to what the number of samples can never certify, those of before: no radius that
        they prove exceeds such an epsilon, so nothing is answered.
        """
        if self._aside.gate_radius != self._radius():
            with contextlib.suppress(ValueError):
                self._make_gate(self._radius())
            self._aside.gate_radius = self._radius()
            self._aside.functions.clear()
        return self._aside.gate

    def _radius(self) -> float:
        with outside_of_graphs():
            return float(ops.convert_to_numpy(self.epsilon))

    @property
    def epsilon(self) -> Any:
        """The radius defended at run time, in input units: a scalar float32 variable; assign a number to change it.

        Raises:
            ValueError: when assigned a radius that the number of samples can never certify.
        """
        return self._settings.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        # Graphs that were made before stop by the old gate, which costs draws at most: what they answer is compared
        # with the radius of now.
        before = self._radius()
        self._settings.epsilon.assign(checked_radius(value))
        try:
            self._make_gate(self._radius())
        except ValueError:
            self._settings.epsilon.assign(before)
            raise
        self._aside.functions.clear()

    def _make_gate(self, epsilon: float) -> None:
        if not self.radius_ceiling > epsilon:
            enough = smallest_samples(epsilon, self.sigma, self._final_alpha)
            remedy = f"Take samples >= {enough}" if enough else f"Take a sigma above {self.sigma:g}"
            raise ValueError(
                f"samples={self.samples} can never certify epsilon={epsilon:g} at sigma={self.sigma:g}, "
                f"alpha={self.alpha:g} (mode {self.mode!r}): the radius of a unanimous vote is "
                f"{self.radius_ceiling:.6g}. {remedy}, or defend a smaller radius."
            )
        self._aside.gate = _GATES[self.mode](epsilon, self.sigma, self.samples, self.alpha)
        self._aside.gate_radius = epsilon

    # Verdicts.

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if training:
            _refuse_training()
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry("scores", lambda part: self._judgement(part, frozen=False).scores, inputs)

    def _judgement(self, inputs: Any, frozen: bool) -> Judgement:
        inputs = float32_tensor(inputs)
        found = self._sampled(inputs, fresh=frozen)
        drawn = ops.cast(ops.maximum(found.drawn, 1), "float32")
        scores = ops.cast(found.counts, "float32") / drawn[:, None]
        # The gate decided by whole numbers. Where epsilon has become larger since, what it proved may not be enough.
        answered = found.radius > ops.convert_to_tensor(self.epsilon)
        margin = ops.where(answered, ops.maximum(found.margin, 1), ops.minimum(found.margin, 0))
        scores = self.head(scores, ops.cast(margin, "float32") / drawn, found.drawn > 0)
        # Without noise: what can be compared from one machine to another.
        logits = self._aside.sampler.logits(inputs)
        logits = ops.where(finite_rows(logits)[:, None], logits, 0.0)
        return Judgement(scores, found.radius, {"samples_used": found.samples_used, "logits": logits})

    def _sampled(self, inputs: Any, fresh: bool) -> Any:
        from defended.smoothing.sampler import fresh_seed, seed_of

        gate = self.gate

        def sample(inputs: Any) -> Any:
            seed = fresh_seed() if fresh or self.seed is None else seed_of(self.seed, inputs)
            return self._aside.sampler.decide(inputs, seed, gate)

        # Eagerly, a loop would run its thousands of rounds in Python.
        return self._compiled("sample fresh" if fresh else "sample", sample)(inputs)

    def certified_radius(self, inputs: Any) -> Any:
        """`[batch]` float32, from a run of sampling of its own: with probability at least 1 - alpha for each input, the
        smoothed classifier does not change within it; 0 where nothing is certified.

        Label and radius of one run are what `verdicts` gives.
        """
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry("radius", lambda part: self._judgement(part, frozen=False).radius, inputs)

    def radius_from_scores(self, scores: Any) -> Any:
        """Certified radius `[batch]` from scores `[batch, m + 1]`: of mode `"fixed"` that of the leader's votes.

        In mode `"sequential"` the scores do not tell how many draws there were: just above epsilon where answered, else
        0.
        """
        leading = leader(scores).predicted
        answered = ops.not_equal(leading, self.num_classes)
        epsilon = ops.convert_to_tensor(self.epsilon)
        least = ops.where(answered, epsilon * (1 + 2.0**-20), ops.zeros_like(scores[:, 0]))
        if self.mode == "sequential":
            return least
        votes = ops.cast(ops.round(ops.max(scores[:, :-1], axis=-1) * self.samples), "int32")
        radius = ops.take(ops.convert_to_tensor(self.gate.radius), votes)
        # A leader who was not the candidate has more votes than a rejection shows.
        return ops.where(answered, ops.maximum(radius, least), ops.where(radius > epsilon, 0.0, radius))

    def availability_radius(self, inputs: Any) -> Any:
        """`[batch]` float32 `max(R - epsilon, 0)`, up to sampling error: no perturbation of smaller norm makes the true
        radius, `sigma * Phi^-1(P(g(x)))`, fall to epsilon.

        The true radius is 1-Lipschitz while the class holds. The deployed check bounds it from below, by new draws, and
        so rejects some inputs whose true radius exceeds epsilon by less than the bound's own slack; nearly all of them
        where the excess is small. With probability at least 1 - alpha the radius here is not above the true one.
        """
        return super().availability_radius(inputs)

    def competitor_radii(self, inputs: Any) -> Any:
        """`[batch, m]`: *estimate* of the radius within which class i does not overtake; differentiable in x.

        From the mean softmax over `attack_samples` fixed draws (`defended.smoothing.estimate`). The smallest entry is
        the radius that CERTIFY would give to such shares; the largest float32 stands for the predicted class. It may
        be negative. For attacks, which descend it; verdicts come from sampling.
        """
        import tensorflow as tf

        from defended.smoothing.estimate import estimate_competitor_radii, standard_noise

        functions, shape = self._aside.functions, self.input_shape[1:]
        if "noise" not in functions:
            functions["noise"] = self.sigma * standard_noise(self.attack_samples, shape)
        inputs = self._pass_gate(float32_tensor(inputs))
        noisy = tf.reshape(inputs[:, None] + functions["noise"][None], [-1, *shape])
        logits = self._aside.sampler.logits(noisy)
        logits = tf.reshape(logits, [-1, self.attack_samples, self.num_classes])
        return estimate_competitor_radii(logits, self.sigma)

    def predict_class(self, x: Any, samples: int | None = None, batch_size: int = 256) -> Array:
        """PREDICT: the smoothed classifier's class, without a radius, or -1 (Cohen et al. 2019, section 3.2.1).

        The two classes with most votes are compared by a two-sided binomial test. For each input on its own, the
        probability of a class that is not g(x) is at most alpha.

        Args:
            x: `[n, *input shape]`.
            samples: draws for each input; None for `self.samples`.
            batch_size: inputs that share their noise.

        Returns:
            `[n]` int64; -1 where the test abstains, and where the input is not finite.
        """
        ordered = np.sort(counts := self.sample_counts(x, samples, batch_size), axis=1)
        p_value = binomial_p_value(ordered[:, -1], ordered[:, -2])
        return np.where(p_value <= self.alpha, counts.argmax(axis=1), -1).astype(np.int64)

    def sample_counts(self, x: Any, samples: int | None = None, batch_size: int = 256) -> Array:
        """SAMPLEUNDERNOISE: `[n, m]` int64 votes of `samples` draws for inputs `[n, *input shape]`.

        Draws whose logits are not finite vote for no class; inputs that are not finite get no votes.
        """
        from defended.smoothing.sampler import fresh_seed, seed_of

        number = self.samples if samples is None else whole_number("samples", samples, 1, MAX_SAMPLES, floats=True)

        def count(inputs: Any, number: Any) -> Any:
            seed = fresh_seed() if self.seed is None else seed_of(self.seed, inputs)
            return self._aside.sampler.count(inputs, number, seed)

        x, batch_size = self._checked_inputs(x), whole_batch_size(batch_size)
        self.ensure_proven()
        counter = self._compiled("count", count)
        parts = [
            ops.convert_to_numpy(counter(float32_tensor(x[first : first + batch_size]), ops.array(number)))
            for first in range(0, len(x), batch_size)
        ]
        return np.concatenate([np.zeros((0, self.num_classes), np.int64), *parts])

    def votes_under(self, inputs: Any, noise: Any) -> Any:
        """`[batch, m]` int32 votes of `[batch, ...]` inputs under `[draws, ...]` noise that was drawn elsewhere."""
        return self._aside.sampler.count_chunk(inputs, noise)

    def undefended_logits(self, inputs: Any) -> Any:
        """`[batch, m]`: the network's logits at the inputs themselves, without noise, in this model's precision."""
        return self._aside.sampler.logits(float32_tensor(inputs))

    def covered_drift(self, x: Any) -> Array:
        """`[n, m]`, infinity: votes are those of the evaluation that is deployed, and the certificate is about it."""
        return np.full((len(x), self.num_classes), np.inf)

    def disagreements(self, x: Array, outputs: Mapping[str, Array], batch_size: int = 256) -> Array:
        """Inputs whose shares of votes in `outputs` differ from this model's by more than chance explains.

        The model draws 1000 votes for each input; the graph had stopped at one of K checkpoints t. By Hoeffding's
        inequality, and a union over checkpoints, inputs and classes, equal models show a difference above
        `sqrt(l / 2t) + sqrt(l / 2000)`, `l = log(4 K n m / 1e-9)`, with probability at most 1e-9. An answer without a
        radius above epsilon, or such a radius without an answer, disagrees as well.
        """
        own = self.sample_counts(x, _COMPARED, batch_size) / _COMPARED
        log = np.log(4e9 * len(self.gate.checkpoints) * max(own.size, 1))
        drawn = np.maximum(outputs["samples_used"] - self.selection_samples, 1)
        allowed = np.sqrt(log / (2 * drawn)) + np.sqrt(log / (2 * _COMPARED))
        apart = np.abs(outputs["scores"] - own).max(axis=1, initial=0.0) > allowed
        above = outputs["certified_radius"] > np.float32(self._radius())
        return np.flatnonzero(apart | (above != (outputs["label"] >= 0)))

    def _judge(self) -> Any:
        strategy = getattr(self, "distribute_strategy", None)
        if strategy is None or strategy.num_replicas_in_sync == 1:
            return super()._judge()
        from defended.smoothing.distributed import judge_in_replicas

        return judge_in_replicas(strategy, self)

    def _rows_at_once(self) -> int:
        return self.max_batch or rows_at_once(self._aside.sampler)

    # The certificate's state: it is made at run time, of the weights as they are.

    @ProvingProperty
    def is_final(self) -> bool:
        """True: every answer is proven when it is given, for the network as it is then.

        That the network is a function of its input is looked at first, where it changed since that was seen.
        """
        self.ensure_proven()
        return True

    def _retrace(self) -> None:
        from defended.smoothing.sampler import Sampler

        self._aside.sampler = Sampler(
            self.network, self.sigma, self.selection_samples, self._rows_at_once, self.precision
        )

    def _prove(self) -> None:
        """There is nothing to prove in advance."""

    def _check_evaluation(self, thorough: bool = True) -> None:
        require_deterministic(self.network)

    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        raise NotImplementedError("A smoothed model judges by one run of sampling: see `_judgement`.")

    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        raise NotImplementedError("A smoothed model judges by one run of sampling: see `_judgement`.")

    def _estimated_slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool) -> Any:
        _refuse_training()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} name={self.name}, classes={self.num_classes}, "
            f"epsilon={self._radius():g} (l2), sigma={self.sigma:g}, "
            f"{self.mode} n={self.samples}, alpha={self.alpha:g}, proven at run time>"
        )

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: votes have no gradient. Train the network under noise, then smooth it."""
        _refuse_training()

    @property
    def sampling(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The parameters of the draws, as a manifest states them."""
        names = ("sigma", "alpha", "mode", "samples", "selection_samples", "precision")
        return {name: getattr(self, name) for name in names}

    @property
    def certificate_method(self) -> str:  # type: ignore[override]
        return method_of(self)

    @property
    def certificate_assumptions(self) -> tuple[str, ...]:  # type: ignore[override]
        return assumptions_of(self)

    def get_config(self) -> dict[str, Any]:
        names = (
            "sigma", "samples", "selection_samples", "alpha", "mode", "seed", "max_batch", "precision",
            "attack_samples",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _refuse_training() -> Any:
    raise RuntimeError(
        "A smoothed model's votes have no gradient to train by. Train its network under the same noise, then smooth "
        "it: `defended.smoothing.train_noisy(model.network, x, y, sigma=model.sigma)`."
    )
