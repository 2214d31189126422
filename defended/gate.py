"""The gate of a defended model: what answers is proven for the network as it is now, or nothing answers.

A proof belongs to this process. `finalize` traces the network, proves the constants, compares what is evaluated with
what was proven, and remembers the network's digest. Every Python entry to an answer or a radius passes `ensure_proven`,
which compares, by a watch where that is exact and by the digest where it is not, and proves anew where the network has
changed. Compiled graphs read a seal; where it is not set, they reject everything.

Files hold claims (`defended.claims`): bounds that were proven elsewhere. They shorten a proof, which then verifies
where it would have searched, and are believed without one only if the file is trusted.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from defended.certificate import Certificate, Judge
from defended.networks.identity import Watch, digest_of_settings, digest_of_values, values_of
from defended.progress import shown
from defended.settings import ProvenConstants, Settings
from defended.tracing import CompiledFunctions, in_stateless_scope, outside_of_graphs

_LOG = logging.getLogger("defended")


class ProvingProperty(property):
    """A property whose reading may prove bounds.

    Keras reads every attribute of a model, properties included, while it writes or loads a file, when half of the
    weights may be old ones: at that time there is no such attribute.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is not None and sys._getframe(1).f_code.co_name == "_walk_saveable":
            raise AttributeError("not while a file is written or loaded")
        return super().__get__(instance, owner)


class Gate:
    """Mixed into a defended model: the state of its proof."""

    network: keras.Model
    name: str
    norm: str
    _certified_norm: str
    _certificate: Certificate
    _settings: Settings
    _proof: ProvenConstants
    _compiled: CompiledFunctions
    _aside: SimpleNamespace
    _judge: Callable[[], Judge]
    _local: threading.local
    """What holds in this thread: whether it estimates, and whether an entry was passed."""

    def _inside(self) -> tuple[Any, ...]:
        """Return the defended models that this one asks: its proof rests on theirs."""
        return ()

    # The state.

    @ProvingProperty
    def is_final(self) -> bool:
        """Whether the certificate is proven for the network as it is now.

        Bounds that came from a file are verified, once, when this is read or an answer is wanted.
        """
        with outside_of_graphs():
            if self._aside.claims is not None and not self._is_estimating():
                self.ensure_proven()
            return self._is_current()

    def finalize(self, progress: bool | None = None) -> None:
        """Prove the bounds of the network as it is now and freeze them. `fit` ends with this; training thaws them.

        The layers' settings are read again, and what is evaluated is compared with what was proven.

        Args:
            progress: show a bar on stderr; None shows it on a terminal, once the proof takes more than a few seconds.

        Raises:
            ValueError: when weights are not finite, a layer has become one that is not known, or the network is
                evaluated as a function other than the one that was proven, and the message names the layer; or when
                `norm` was changed.
        """
        if self.norm != self._certified_norm:
            raise ValueError(
                f"`norm` was set to {self.norm!r} after {self.name!r} was made, and its certificate is one in "
                f"{self._certified_norm!r}. Set it back, or make another model."
            )
        with shown(f"{self.name}: proving bounds", wanted=progress), outside_of_graphs():
            claims, self._aside.claims, self._aside.certified = self._aside.claims, None, None
            self._proof.unseal()
            settings = digest_of_settings(self.network)
            if settings != self._aside.settings or self.network is not self._certificate.network:
                # Graphs hold what was set when they were made.
                self._forget_graphs()
                self._compiled.input_shape = tuple(self.network.input_shape[1:])
                self._certificate.retrace(self.network)
                self._aside.settings = settings
            for model in self._inside():
                model.ensure_proven()
            self._certificate.prove(claims or {})
            self._aside.trained = False
            self._proof.seal(self._proven_of())
            try:
                self._check()
            except BaseException:
                self._proof.unseal()
                raise
            self._remember(settings)

    def ensure_proven(self) -> None:
        """Prove the bounds again where they are not those of the network as it is now; a line in the log says so."""
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

    def verify(self) -> None:
        """Prove the bounds where needed, and check on a few inputs that what is evaluated is what was proven.

        An export begins with this.

        Raises:
            ValueError: as for `finalize`.
        """
        with outside_of_graphs():
            if self._is_current():
                self._check(thorough=False)
            else:
                self.ensure_proven()

    def _check(self, thorough: bool = True) -> None:
        """Compare what is evaluated with what was proven; raise `ValueError` where they differ."""
        self._certificate.check(self.name, self._judge, thorough)

    def values_digest(self) -> str:
        """Return the hexadecimal SHA-256 of the network's weights and proven constants: the same in every process."""
        inside = [value for model in self._inside() for value in model._proven_of()]
        return digest_of_values([*inside, *self._proven_of()]).hex()

    def _constants(self) -> list[Any]:
        """Return the proven constants, in the order of their names."""
        return [variable for _, variable in sorted(vars(self._proof.named).items())]

    def _proven_of(self) -> list[Any]:
        """Return weights and constants, which a graph that others compile compares with their values at the proof."""
        return [*values_of(self.network), *self._constants(), *self._certificate.variables]

    def _is_current(self) -> bool:
        certified = self._aside.certified
        if certified is None or self.network is not certified.network or self.norm != self._certified_norm:
            return False
        if not (all(model._is_current() for model in self._inside()) and self._certificate.holds()):
            return False
        # The watch has the seal among its variables.
        if certified.watch.settings_are_untouched() and certified.watch.values_are_untouched():
            return True
        if not self._proof.is_sealed or self._identity() != certified.digest:
            return False
        certified.watch = Watch(self.network, self._watched())
        return True

    def _remember(self, settings: bytes | None = None) -> None:
        watch = Watch(self.network, self._watched())
        self._aside.certified = SimpleNamespace(network=self.network, digest=self._identity(settings), watch=watch)

    def _watched(self) -> list[Any]:
        """Return the variables whose values the proof is about, besides the network's."""
        inside = [variable for model in self._inside() for variable in model._watched()]
        return [*self._proof.variables, *inside, *self._certificate.variables]

    def _identity(self, settings: bytes | None = None) -> bytes:
        """Return the SHA-256 of what the certificate is about: network, constants, and what else enters the proof."""
        further = self._certificate.identity()
        parts = [settings or digest_of_settings(self.network), digest_of_values(values_of(self.network))]
        parts.append(digest_of_values(self._constants()))
        parts.extend(part.encode() if isinstance(part, str) else digest_of_values([part]) for part in further)
        return hashlib.sha256(b"\0".join(parts)).digest()

    def _thaw(self) -> None:
        """Break the seal, since training goes on: nothing is proven for the weights from now on."""
        for model in (self, *self._inside()):
            model._proof.unseal()

    def _forget_graphs(self) -> None:
        """Drop compiled functions: they hold settings, or were made for estimates."""
        self._compiled.clear()
        self.predict_function = None
        if not self._aside.fitting:  # a running `fit` holds on to its steps, which are about estimates anyway
            self.train_function = self.test_function = None

    def _is_sealed(self) -> Any:
        """Return a boolean tensor: whether a graph may answer.

        Where a Python entry has just checked, the seal decides; elsewhere the variables are compared, too.
        """
        sealed = ops.convert_to_tensor(self._settings.epsilon) > 0
        for model in (self, *self._inside()):
            looked = getattr(model._local, "entered", 0)
            proof = model._proof.sealed if looked else model._proof.sealed_for(model._proven_of())
            sealed = ops.logical_and(sealed, proof)
        return sealed

    def _if_proven(self, value: Any, otherwise: float, frozen: bool = False) -> Any:
        """Return a tensor, or `otherwise` where a graph sees no seal; `frozen` takes the seal for granted."""
        if frozen or self._certificate.at_run_time:
            return value
        return ops.where(self._is_sealed(), value, otherwise)

    def _entered(self) -> Any:
        """Return a context for graphs that only run behind an entry, which has checked that the bounds are proven."""
        return self._counted("entered")

    # Estimates.

    @contextmanager
    def estimates(self) -> Iterator[None]:
        """Let inference within the context rest on training-time *estimates*, to validate in your own training loop.

        Nothing is proven about what is answered there. `fit` does the same for its own validation.
        """
        self._forget_graphs()
        try:
            with self._estimating():
                yield
        finally:
            self._forget_graphs()

    def _estimating(self) -> Any:
        return self._counted("estimating")

    def _is_estimating(self) -> bool:
        return bool(getattr(self._local, "estimating", 0))

    @contextmanager
    def _counted(self, state: str) -> Iterator[None]:
        """Let a state hold within the context in this thread, for this model and those inside."""
        with ExitStack() as stack:
            for model in self._inside():
                stack.enter_context(model._counted(state))
            setattr(self._local, state, getattr(self._local, state, 0) + 1)
            try:
                yield
            finally:
                setattr(self._local, state, getattr(self._local, state) - 1)
