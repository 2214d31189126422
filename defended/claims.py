"""What a file holds of a proof: claims, verified before the first answer, or believed if the file is trusted."""

from __future__ import annotations

from typing import Any

import numpy as np

from defended.gate import Gate
from defended.networks.identity import digest_of_settings

_PREFIX = "claimed "


class ClaimsInFiles(Gate):
    """Mixed into a defended model: its own variables and its proof, as files store them."""

    _trainable_variables: list[Any]
    _non_trainable_variables: list[Any]

    def save_own_variables(self, store: Any) -> None:
        """Store training state by name and, for a final model, what its proof found (Keras's hook)."""
        for variable in self._own_variables():
            store[variable.name] = variable
        if self._is_current():
            for name, value in {**self._proof.values(), **self._certificate.claims()}.items():
                store[_PREFIX + name] = value
            store[_PREFIX + "digest"] = np.frombuffer(self._identity(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Read it back (Keras's hook): settings stay as they are, and bounds become claims."""
        self._proof.unseal()
        self._aside.certified = None
        keys = list(store.keys())
        claims = {key.removeprefix(_PREFIX): np.asarray(store[key]) for key in keys if key.startswith(_PREFIX)}
        # Files of earlier versions number what they hold: radius, two scales, a checksum, constants, training state.
        # They claim that there is a proof where the checksum is not 0.
        numbered = all(key.isdecimal() for key in keys)
        is_claimed = bool(claims) or (numbered and "3" in keys and int(np.asarray(store["3"])) != 0)
        self._aside.claims = claims if is_claimed else None
        own = self._own_variables()
        for index, variable in enumerate(own):
            key = str(len(keys) - len(own) + index) if numbered else variable.name
            if key in keys and tuple(store[key].shape) == tuple(variable.shape):
                variable.assign(store[key])

    def _own_variables(self) -> list[Any]:
        """Return the model's variables that are neither its network's nor any other layer's."""
        return [*self._trainable_variables, *self._non_trainable_variables]

    def trust_file(self) -> bool:
        """Adopt the constants that a file claims, without a proof, if they are this network's; return whether they are.

        For files whose hash is known: those of a zoo, or your own that nobody else can write.
        """
        if not all(model.trust_file() for model in self._inside()):
            return False
        claims = self._aside.claims
        if claims is None or "digest" not in claims or self._is_estimating():
            return False
        names = self._proof.values()
        if any(name not in claims or claims[name].shape != value.shape for name, value in names.items()):
            return False
        self._proof.assign(claims)
        if self._identity() != claims["digest"].tobytes():
            return False
        self._aside.claims = None
        self._certificate.believe(claims)
        self._aside.settings = digest_of_settings(self.network)
        self._proof.seal(self._proven_of())
        self._remember(self._aside.settings)
        return True
