"""The certificate of a kind of defence that states its mathematics in methods of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from defended.certificate import Certificate, Claims, Finding, Judge
from defended.margins import finite_rows
from defended.networks.consistency import inconsistency

# Optional methods of a model, and the members of `Certificate` that they stand for.
_MEMBERS = {
    "_refine_estimates": "refine", "_further_identity": "identity", "_claims": "claims", "_believe": "believe",
}  # fmt: skip


class HookedCertificate(Certificate):
    """A certificate that asks the model itself.

    A subclass of `DefendedModel` that brings no certificate of its own must have

    - `_slack(inputs, logits, epsilon, training, frozen=False)`: slack `[batch]`, positive where certified;
    - `_radii(inputs, logits, frozen=False)`: `[batch, m]`, the certified radius against each competitor;
    - `_prove()`: set the constants that it added to `self._proof`;

    and may have `_estimated_slack(inputs, logits, epsilon, training)`, `_logits(inputs, training)`, `_valid(inputs)`,
    `_refine_estimates()`, `_retrace()`, `_check_evaluation(thorough)`, `_further_identity()`, `_claims()` and
    `_believe(claims)`, which are what the members of `Certificate` are; see there.
    """

    def __init__(self, model: Any):
        super().__init__(model.network)
        self._model = model
        for hook, member in _MEMBERS.items():
            if hasattr(model, hook):
                setattr(self, member, getattr(model, hook))

    def _hook(self, name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        return getattr(self._model, name, otherwise)

    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        logits = self._model._logits(inputs, training=False)
        return Finding(
            logits,
            self._model._slack(inputs, logits, epsilon, training=False),
            lambda: ops.min(self._model._radii(inputs, logits), axis=-1),
            self._hook("_valid", finite_rows)(inputs),
        )

    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        return self._model._radii(inputs, self._model._logits(inputs, training=False))

    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        logits = self._model._logits(inputs, training=training)
        return logits, self._hook("_estimated_slack", self._model._slack)(inputs, logits, epsilon, training)

    def prove(self, claims: Claims) -> None:
        self._model._prove()

    def retrace(self, network: keras.Model) -> None:
        super().retrace(network)
        self._hook("_retrace", lambda: None)()

    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        """Ask the model; where it has nothing to say, compare the network's logits with themselves, alone, in a batch
        and compiled.
        """
        self._hook("_check_evaluation", lambda _: self._check_consistency(name))(thorough)

    def _check_consistency(self, name: str) -> None:
        found = inconsistency(self.network)
        if found is not None:
            raise ValueError(f"The network of {name!r} {found.what}, so nothing is proven of it. {found.remedy}.")
