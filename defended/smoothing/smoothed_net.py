"""SmoothedNet: randomized smoothing as a Keras model that rejects (Cohen, Rosenfeld, Kolter 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from defended.arguments import one_of, positive_number, whole_number
from defended.certificate import of_certificate
from defended.defended_model import DefendedModel
from defended.gate import ProvingProperty
from defended.margins import leader
from defended.networks.checks import checked_radius
from defended.smoothing.bounds import MAX_SAMPLES, checked_alpha
from defended.smoothing.gate import Gate
from defended.smoothing.statement import assumptions_of, method_of
from defended.smoothing.tokens import refuse_tokens
from defended.smoothing.vote_certificate import GATES, VoteCertificate, refuse_training
from defended.smoothing.votes import Votes

_PRECISIONS = ("float32", "bfloat16", "float16")


@keras.saving.register_keras_serializable(package="defended")
class SmoothedNet(Votes):
    """A classifier that answers with the majority of its network's votes under Gaussian noise, where that is proven.

    The smoothed classifier is `g(x) = argmax over c of P(network(x + sigma * N) = c)`. CERTIFY: `selection_samples`
    draws choose a candidate class; further draws bound its probability from below by p, at confidence 1 - alpha; the
    certified l2 radius is `R = sigma * Phi^-1(p)`. The model answers the candidate where `R > epsilon`, and rejects
    otherwise; p <= 1/2, which is CERTIFY's abstention, has radius 0.

    **Guarantee.** For each input on its own: with probability at least 1 - alpha over the noise, an answer is g(x), and
    g does not change within the radius given (theorem 1 of the paper). The inputs of a batch are judged under
    independent noise. Another call draws other noise and may answer where this one rejected, or reject where this one
    answered.

    `model(x)` is `[batch, m + 1]`: the classes' shares of the votes, and for ⊥ the share that the leader had to exceed.
    They have no gradient. `competitor_radii` has one, and is an estimate.

    `mode="sequential"` looks early, by a confidence sequence that holds at alpha whenever it stops
    (`defended.smoothing.sequential`): easy inputs take a hundred draws, inputs near the threshold all `samples`;
    `model.cost(x[:4])` says how many, and how many seconds. Its radius is what was proven when it stopped, just above
    epsilon or more; an input that was given up early has radius 0. `mode="fixed"` is the paper's procedure: `samples`
    draws for each input. Measure radii and availability in it.

    The network needs no rule and no bound: any will do that computes a function of its input. Batch normalisation
    and dropout act as at inference. Train it under the same noise, or its votes will be scattered.

    Args:
        network: a built Keras model with one input and logits `[batch, m]` out.
        epsilon: the l2 radius defended at run time, in input units; positive.
        sigma: standard deviation of the noise, in the same units; positive.
        samples: draws that bound the candidate's probability, n; in mode `"sequential"` at most so many.
        selection_samples: draws that choose the candidate, n0.
        alpha: probability of a wrong certificate, for each answer.
        mode: `"sequential"` or `"fixed"`.
        seed: None draws fresh entropy at every call, as service needs it. A number makes the noise of a call a function
            of it and of the content of the batch, so that an experiment repeats to the bit. An export is always fresh.
        max_batch: the most noisy inputs that are evaluated at a time, the memory budget; None for up to 1024 on a CPU,
            and for what is found to be fast on a GPU.
        precision: `"float32"`, or `"bfloat16"` or `"float16"` to evaluate the network in. The noise is still drawn and
            added in float32. What is certified is then the network in that precision, which is not the one in float32:
            figures for the one do not hold for the other.
        attack_samples: draws behind `competitor_radii`.

    Raises:
        ValueError: for an argument out of range; samples that can never certify epsilon at alpha (the message says how
            many could); a network that is random or depends on the rest of the batch at inference, or reads numbers of
            words.
        RuntimeError: when Keras does not run on TensorFlow.

    Example:
        >>> model = SmoothedNet(network, epsilon=0.25, sigma=0.25)
        >>> print(model.cost(x_test[:4]))
        >>> model.verdicts(x_test).rejected.mean()
    """

    details = ("samples_used", "logits")

    def __init__(
        self,
        network: keras.Model,
        epsilon: float,
        sigma: float,
        samples: int = 100_000,
        selection_samples: int = 100,
        alpha: float = 0.001,
        *,
        mode: str = "sequential",
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
        self.sigma, self.alpha = positive_number("sigma", sigma, "in input units"), checked_alpha(alpha)
        self.samples = whole_number("samples", samples, 1, MAX_SAMPLES, floats=True)
        self.selection_samples = whole_number("selection_samples", selection_samples, 1, MAX_SAMPLES, floats=True)
        attack_samples = whole_number("attack_samples", attack_samples, 1, MAX_SAMPLES, floats=True)
        max_batch = None if max_batch is None else whole_number("max_batch", max_batch, 1, MAX_SAMPLES, floats=True)
        seed = None if seed is None else whole_number("seed", seed, 0, 2**62, floats=True)
        self.mode, self.precision = one_of("mode", mode, GATES), one_of("precision", precision, _PRECISIONS)
        refuse_tokens(network)
        super().__init__(network, epsilon=epsilon, norm="l2", name=name, **kwargs)
        self.supports_jit = False  # the loop's shapes follow what is still undecided
        self._certificate = VoteCertificate(
            network=self.network, settings=self._settings, compiled=self._compiled, sigma=self.sigma,
            samples=self.samples, selection_samples=self.selection_samples, alpha=self.alpha, mode=mode, seed=seed,
            max_batch=max_batch, precision=precision, attack_samples=attack_samples,
        )  # fmt: skip
        self.finalize()

    # Settings of the certificate, which may be set anew.
    seed = of_certificate("seed")
    max_batch = of_certificate("max_batch")
    attack_samples = of_certificate("attack_samples")

    # What the noise can prove.

    @property
    def radius_ceiling(self) -> float:
        """`sigma * Phi^-1(alpha^(1/n))`, the largest radius that any input can have; alpha/2 in mode `"sequential"`."""
        return self._certificate.radius_ceiling

    @property
    def gate(self) -> Gate:
        """The thresholds and radii in use, see `defended.smoothing.Gate`: those of epsilon as it is now.

        Where the variable was moved to what the number of samples can never certify, they are those of before: no
        radius that they prove exceeds such an epsilon, so nothing is answered.
        """
        return self._certificate.gate

    @property
    def epsilon(self) -> Any:
        """The radius defended at run time, in input units: a scalar float32 variable; assign a number to change it.

        Raises:
            ValueError: when assigned a radius that the number of samples can never certify.
        """
        return self._settings.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        # Graphs made before stop by the old gate, which costs draws at most: answers are compared with epsilon of now.
        before = self._certificate.radius
        self._settings.epsilon.assign(checked_radius(value))
        try:
            self._certificate.make_gate()
        except ValueError:
            self._settings.epsilon.assign(before)
            raise
        self._compiled.clear()

    # Verdicts.

    def certified_radius(self, inputs: Any) -> Any:
        """Return the radius `[batch]` float32, from a sampling run of its own: with probability at least 1 - alpha for
        each input, the smoothed classifier does not change within it; 0 where nothing is certified.

        `verdicts` gives the label and the radius of one run.
        """
        return super().certified_radius(inputs)

    def radius_from_scores(self, scores: Any) -> Any:
        """Return certified radii `[batch]` from scores `[batch, m + 1]`: in mode `"fixed"` those of the leaders' votes.

        For a rejection it is no more than the leader's votes show: scores do not say whether it was the candidate. In
        mode `"sequential"` they do not say how many draws there were: just above epsilon where answered, else 0.
        """
        answered = ops.not_equal(leader(scores).predicted, self.num_classes)
        epsilon = ops.convert_to_tensor(self.epsilon)
        least = ops.where(answered, epsilon * (1 + 2.0**-20), ops.zeros_like(scores[:, 0]))
        if self.mode == "sequential":
            return least
        votes = ops.cast(ops.round(ops.max(scores[:, :-1], axis=-1) * self.samples), "int32")
        radius = ops.take(ops.convert_to_tensor(self.gate.radius), votes)
        # A leader who was not the candidate has more votes than a rejection shows.
        return ops.where(answered, ops.maximum(radius, least), ops.where(radius > epsilon, 0.0, radius))

    def availability_radius(self, inputs: Any) -> Any:
        """Return `max(R - epsilon, 0)`, `[batch]` float32: up to sampling error, no perturbation of smaller norm makes
        the true radius, `sigma * Phi^-1(P(g(x)))`, fall to epsilon.

        The true radius is 1-Lipschitz while the class holds. The deployed check bounds it from below, by new draws, and
        so rejects some inputs whose true radius exceeds epsilon by less than the bound's own slack; nearly all of them
        where the excess is small. With probability at least 1 - alpha the radius here is not above the true one.
        """
        return super().availability_radius(inputs)

    def competitor_radii(self, inputs: Any) -> Any:
        """Estimate the radius `[batch, m]` within which class i does not overtake; differentiable in x.

        It comes from the mean softmax over `attack_samples` fixed draws (`defended.smoothing.estimate`). The smallest
        entry is the radius that CERTIFY would give to such shares; the largest float32 stands for the predicted class.
        It may be negative. Attacks descend it; verdicts come from sampling.
        """
        return super().competitor_radii(inputs)

    def _judge(self) -> Any:
        strategy = getattr(self, "distribute_strategy", None)
        if strategy is None or strategy.num_replicas_in_sync == 1:
            return super()._judge()
        from defended.smoothing.distributed import judge_in_replicas

        return judge_in_replicas(strategy, self)

    @ProvingProperty
    def is_final(self) -> bool:
        """True: every answer is proven when it is given, for the network as it is then.

        Whether the network is a function of its input is checked first, where it has changed since the last check.
        """
        self.ensure_proven()
        return True

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} name={self.name}, classes={self.num_classes}, "
            f"epsilon={self._certificate.radius:g} (l2), sigma={self.sigma:g}, "
            f"{self.mode} n={self.samples}, alpha={self.alpha:g}, proven at run time, cost(x) tells draws and seconds>"
        )

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: votes have no gradient. Train the network under noise, then smooth it."""
        refuse_training()

    @property
    def sampling(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The parameters of the draws, as a manifest states them."""
        names = ("sigma", "alpha", "mode", "samples", "selection_samples", "precision")
        return {name: getattr(self, name) for name in names}

    certificate_method = property(method_of)
    certificate_assumptions = property(assumptions_of)

    def get_config(self) -> dict[str, Any]:
        names = (
            "sigma", "samples", "selection_samples", "alpha", "mode", "seed", "max_batch", "precision",
            "attack_samples",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> DefendedModel:
        # What was written without a mode was written when "fixed" was the default.
        return super().from_config({"mode": "fixed", **config}, custom_objects)
