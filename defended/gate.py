"""The gate of a defended model: what answers is proven of the network as it is now, or nothing answers.

A proof is of this process. `finalize` traces the network, proves the constants, compares what evaluates with what was
proven, and remembers the network's digest. Every Python entry to an answer or a radius passes `ensure_proven`, which
compares, by a watch where that is exact and by the digest where it is not, and proves anew where the network is another
one than it was. Compiled graphs read a seal; where it is not set they reject everything.

Files hold claims: bounds that were proven elsewhere. They shorten a proof, which then verifies where it would have
searched, and are believed only of a file whose hash is pinned.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.networks.consistency import inconsistency
from defended.networks.identity import Watch, digest_of_settings, digest_of_values
from defended.settings import ProvenConstants

Array = np.ndarray[Any, np.dtype[Any]]
Claims = dict[str, Array]

_LOG = logging.getLogger("defended")


class ProvingProperty(property):
    """A property whose reading may prove bounds.

    Keras reads every attribute of a model, properties too, while it writes or loads a file, in the midst of which half
    of the weights are old ones: then there is no such attribute.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is not None and sys._getframe(1).f_code.co_name == "_walk_saveable":
            raise AttributeError("not while a file is written or loaded")
        return super().__get__(instance, owner)


class Gate:
    """Mixed into a defended model: the state of its proof.

    A kind of defence provides `_prove`, and where it has more to say the other hooks.
    """

    network: Any
    name: str
    epsilon: Any
    norm: str
    _certified_norm: str
    _trainable_variables: list[Any]
    _non_trainable_variables: list[Any]
    _proof: ProvenConstants
    _aside: SimpleNamespace
    _local: threading.local
    """What holds in this thread: whether it estimates, and whether an entry was passed."""

    # What a kind of defence provides.

    def _prove(self) -> None:
        """Set the proven constants, for the weights as they are; `self._aside.offered` holds claims to be verified."""
        raise NotImplementedError

    def _retrace(self) -> None:
        """Read the network's layers and their settings as they are now."""

    def _check_evaluation(self, thorough: bool = True) -> None:
        """Compare what evaluates with what was proven; `ValueError` where they differ.

        Where nothing more is known of a defence, the network's logits are compared with themselves, alone, in a batch
        and compiled.
        """
        found = inconsistency(self.network)
        if found is not None:
            raise ValueError(
                f"The network of {self.name!r} {found.what}: nothing is proven of such a one. {found.remedy}."
            )

    def _believe(self, claims: Claims) -> None:
        """Take over what a trusted file tells besides the constants."""

    def _claims(self) -> Claims:
        """What a file is to hold of the proof, besides the constants, so that it can be verified faster."""
        return {}

    def _further_identity(self) -> list[Any]:
        """Texts and arrays that the proof depends on besides the network and the constants."""
        return []

    # The state.

    @ProvingProperty
    def is_final(self) -> bool:
        """Whether the certificate is proven for the network as it is now.

        Bounds that came from a file are verified, once, when this is asked or an answer is wanted.
        """
        with outside_of_graphs():
            if self._aside.claims is not None and not self._is_estimating():
                self.ensure_proven()
            return self._is_current()

    def finalize(self) -> None:
        """Prove the bounds of the network as it is now and freeze them. `fit` ends with it; training thaws it.

        The layers' settings are read again, and what evaluates is compared with what was proven.

        Raises:
            ValueError: when weights are not finite, a layer has become one that nothing is known of, or the network is
                evaluated as another function than the one that was proven; the message names the layer.
        """
        if self.norm != self._certified_norm:
            raise ValueError(
                f"`norm` was set to {self.norm!r} after {self.name!r} was made, and its certificate is one in "
                f"{self._certified_norm!r}. Set it back, or make another model."
            )
        with outside_of_graphs():
            claims, self._aside.claims, self._aside.certified = self._aside.claims, None, None
            self._proof.unseal()
            settings = digest_of_settings(self.network)
            if settings != self._aside.settings:
                # Graphs hold what was set when they were made.
                self._forget_graphs()
                self._retrace()
                self._aside.settings = settings
            self._aside.offered = claims
            self._prove()
            self._aside.trained = False
            self._proof.seal(self._sealed_variables())
            try:
                self._check_evaluation()
            except BaseException:
                self._proof.unseal()
                raise
            self._remember()

    def ensure_proven(self) -> None:
        """Prove the bounds again where they are not those of the network as it is now; one line of log says so."""
        if in_stateless_scope():
            raise RuntimeError(
                f"{self.name!r} was asked for an answer while other values stand for its weights (`StatelessScope`, "
                f"`stateless_call`): nothing is proven of those. Assign them, and ask outside."
            )
        with outside_of_graphs():
            if self._is_current():
                return
            loaded = self._aside.claims is not None
            start = time.perf_counter()
            self.finalize()
            _LOG.log(
                logging.INFO if loaded else logging.WARNING,
                "%s: %s in %.1f s",
                self.name,
                "bounds of its file verified" if loaded else "bounds proven for the network as it is now",
                time.perf_counter() - start,
            )

    def trust_file(self) -> bool:
        """Take the constants that a file claims without a proof, where they are of this network; whether they were.

        For files whose hash is known: a zoo's, or one's own that nobody else can write.
        """
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
        self._believe(claims)
        self._aside.settings = digest_of_settings(self.network)
        self._proof.seal(self._sealed_variables())
        self._remember()
        return True

    def verify(self) -> None:
        """Prove the bounds where that is needed, and see on a few inputs that what evaluates is what was proven.

        An export begins with it.

        Raises:
            ValueError: as `finalize`.
        """
        with outside_of_graphs():
            if self._is_current():
                self._check_evaluation(thorough=False)
            else:
                self.ensure_proven()

    def values_digest(self) -> str:
        """SHA-256, hexadecimal, of the network's weights and the proven constants: the same in every process."""
        return digest_of_values(self._values()).hex()

    def _values(self) -> list[Any]:
        constants = self._proof.values()
        return [*self.network.variables, *(constants[name] for name in sorted(constants))]

    def _is_current(self) -> bool:
        certified = self._aside.certified
        if certified is None or self.network is not certified.network or self.norm != self._certified_norm:
            return False
        # The watch has the seal among its variables.
        if certified.watch.settings_are_untouched() and certified.watch.values_are_untouched():
            return True
        if not self._proof.is_sealed or self._identity() != certified.digest:
            return False
        certified.watch = self._watch()
        return True

    def _remember(self) -> None:
        self._aside.certified = SimpleNamespace(network=self.network, digest=self._identity(), watch=self._watch())

    def _watch(self) -> Watch:
        return Watch(self.network, self._watched())

    def _watched(self) -> list[Any]:
        """The variables whose values the proof is about, besides the network's."""
        return list(self._proof.variables)

    def _identity(self) -> bytes:
        """SHA-256 of everything that the certificate is about: network, constants, and what else enters the proof."""
        constants = self._proof.values()
        further = self._further_identity()
        parts = [digest_of_settings(self.network), digest_of_values(self.network.variables)]
        parts.append(digest_of_values([constants[name] for name in sorted(constants)]))
        parts.extend(part.encode() if isinstance(part, str) else digest_of_values([part]) for part in further)
        return hashlib.sha256(b"\0".join(parts)).digest()

    def _thaw(self) -> None:
        """Training goes on: nothing is proven of the weights from now on."""
        self._proof.unseal()

    def _forget_graphs(self) -> None:
        """Drop compiled functions: they hold settings, or were made for estimates."""
        self._aside.functions.clear()
        self.predict_function = None
        if not self._aside.fitting:  # a running `fit` holds on to its steps, which are about estimates anyway
            self.train_function = self.test_function = None

    def _sealed_variables(self) -> list[Any]:
        """What a graph that others compile compares with what it was at the proof."""
        return [*self.network.variables, *vars(self._proof.named).values()]

    def _is_sealed(self) -> Any:
        """A boolean tensor: whether a graph may answer.

        Where a Python entry has looked just before, the seal tells; elsewhere the variables are compared, too.
        """
        looked = getattr(self._local, "entered", 0)
        sealed = self._proof.sealed if looked else self._proof.sealed_for(self._sealed_variables())
        return ops.logical_and(sealed, ops.convert_to_tensor(self.epsilon) > 0)

    def _if_proven(self, value: Any, otherwise: float, frozen: bool) -> Any:
        """A tensor, and `otherwise` where a graph sees no seal; `frozen` takes the seal for granted."""
        return value if frozen else ops.where(self._is_sealed(), value, otherwise)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Within it graphs are made that only run behind an entry, which has looked whether the bounds are proven."""
        self._local.entered = getattr(self._local, "entered", 0) + 1
        try:
            yield
        finally:
            self._local.entered -= 1

    # Estimates.

    @contextmanager
    def estimates(self) -> Iterator[None]:
        """Within it, inference rests on training-time *estimates*: for the validation of a training loop of one's own.

        Nothing is proven of what is answered there. `fit` does so for its own validation.
        """
        self._forget_graphs()
        try:
            with self._estimating():
                yield
        finally:
            self._forget_graphs()

    @contextmanager
    def _estimating(self) -> Iterator[None]:
        self._local.estimating = getattr(self._local, "estimating", 0) + 1
        try:
            yield
        finally:
            self._local.estimating -= 1

    def _is_estimating(self) -> bool:
        return bool(getattr(self._local, "estimating", 0))

    # Files.

    def save_own_variables(self, store: Any) -> None:
        """Keras's hook: training state by name and, of a final model, what its proof found."""
        for variable in self._own_variables():
            store[variable.name] = variable
        if self._is_current():
            for name, value in {**self._proof.values(), **self._claims()}.items():
                store[f"claimed {name}"] = value
            store["claimed digest"] = np.frombuffer(self._identity(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Keras's hook, the way back: settings stay as they are, and bounds become claims."""
        self._proof.unseal()
        self._aside.certified = None
        keys = list(store.keys())
        prefix = "claimed "
        claims = {key.removeprefix(prefix): np.asarray(store[key]) for key in keys if key.startswith(prefix)}
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
        """The model's variables that are neither its network's nor any other layer's."""
        return [*self._trainable_variables, *self._non_trainable_variables]


def in_stateless_scope() -> bool:
    """Whether other values stand for variables: as while JAX compiles, or in `stateless_call`."""
    from keras.src.backend.common import stateless_scope

    return bool(stateless_scope.in_stateless_scope())


def outside_of_graphs() -> Any:
    """Where variables can be read although a function is being traced: `deployed` is traced for export."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope() if not tf.executing_eagerly() else nullcontext()
