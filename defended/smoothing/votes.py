"""What votes under noise say of inputs besides a certificate: counts, the paper's PREDICT, and what an answer costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended.arguments import whole_number
from defended.certificate import Array
from defended.defended_model import DefendedModel
from defended.networks.inputs import float32_array, float32_tensor, whole_batch_size
from defended.smoothing.bounds import MAX_SAMPLES, binomial_p_value
from defended.smoothing.cost import Cost
from defended.smoothing.vote_certificate import VoteCertificate

_COMPARED = 1000


class Votes(DefendedModel):
    """The part of a smoothed model that counts votes."""

    samples: int
    alpha: float
    _certificate: VoteCertificate

    def cost(self, x: ArrayLike) -> Cost:
        """Return what an answer costs: draws, each an evaluation of the network, and seconds, typically and at most.

        It is measured on these few inputs, some hundred draws each, without waiting for their answers.

        Args:
            x: `[n, *input shape]`, n at least 1; four are enough.

        Raises:
            ValueError: when the shape of `x` is not that, or there is no input.
        """
        x = float32_array(self._checked_inputs(x))
        if not len(x):
            raise ValueError("`x` must hold at least one input to measure on, such as x_test[:4]. Received: none.")
        self.ensure_proven()
        return self._certificate.cost(x)

    def predict_class(self, x: ArrayLike, samples: int | None = None, batch_size: int = 256) -> Array:
        """Return the smoothed classifier's class, without a radius, or -1: PREDICT (Cohen et al. 2019, section 3.2.1).

        The two classes with most votes are compared by a two-sided binomial test. For each input on its own, the
        probability of a class that is not g(x) is at most alpha.

        Args:
            x: `[n, *input shape]`.
            samples: draws for each input; None for `self.samples`.
            batch_size: inputs that are judged together.

        Returns:
            `[n]` int64; -1 where the test abstains, and where the input is not finite.
        """
        ordered = np.sort(counts := self.sample_counts(x, samples, batch_size), axis=1)
        p_value = binomial_p_value(ordered[:, -1], ordered[:, -2])
        return np.where(p_value <= self.alpha, counts.argmax(axis=1), -1).astype(np.int64)

    def sample_counts(self, x: ArrayLike, samples: int | None = None, batch_size: int = 256) -> Array:
        """Return the votes `[n, m]` int64 of `samples` draws for inputs `[n, *input shape]`: SAMPLEUNDERNOISE.

        Draws whose logits are not finite vote for no class; inputs that are not finite get no votes.
        """
        number = self.samples if samples is None else whole_number("samples", samples, 1, MAX_SAMPLES, floats=True)

        x, batch_size = self._checked_inputs(x), whole_batch_size(batch_size)
        self.ensure_proven()
        parts = [
            self._certificate.counts(x[first : first + batch_size], number) for first in range(0, len(x), batch_size)
        ]
        return np.concatenate([np.zeros((0, self.num_classes), np.int64), *parts])

    def votes_under(self, inputs: Any, noise: Any) -> Any:
        """Return the votes `[batch, m]` int32 of inputs `[batch, ...]` under noise `[draws, ...]` drawn elsewhere."""
        return self._certificate.sampler.count_chunk(inputs, noise[None])

    def undefended_logits(self, inputs: Any) -> Any:
        """Return the network's logits `[batch, m]` at the inputs themselves without noise, in the model's precision."""
        return self._certificate.logits(float32_tensor(inputs), training=False)

    def disagreements(self, x: Array, outputs: Mapping[str, Array], batch_size: int = 256) -> Array:
        """Return inputs whose shares of votes in `outputs` differ from this model's, of 1000, beyond chance."""
        own = self.sample_counts(x, _COMPARED, batch_size) / _COMPARED
        return self._certificate.unexplained(own, _COMPARED, outputs)
