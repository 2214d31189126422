"""What computes pieces: a model, loaded once, and the functions that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from defended.attacks.core.checks import Array
from defended.attacks.measurement.engine import Job, Settings, compute
from defended.serving.cluster.source import Source

if TYPE_CHECKING:
    from defended.serving.artefacts.artefact import Artefact


class Worker:
    """Loads a model once, and computes pieces with it.

    Args:
        source: the model.
        threads: TensorFlow's threads within an operation. Their number changes the order of float32 sums, and with it
            the last digits, so all workers of a run have the same number.
    """

    def __init__(self, source: Source, threads: int) -> None:
        use_threads(threads)
        self.model = source.open()
        self._tasks: dict[str, Callable[[Job, Settings], dict[str, Array]]] = {
            "certify": self._certify,
            "audit": self._audit,
            "perturb": self._perturb,
        }

    def run(self, job: Job, settings: Settings) -> dict[str, Array]:
        """Return the result of a job.

        The kinds of job are `"certify"` and `"audit"` of a range of inputs, `"perturb"` of one by the settings' attack,
        and those of `defended.attacks.measurement.engine`.
        """
        # Arrays from an object store are read-only, and attacks may write into their own copies only.
        own = job._replace(arrays={name: np.array(value) for name, value in job.arrays.items()})
        task = self._tasks.get(job.kind)
        return compute(self.model, settings, own) if task is None else task(own, settings)

    def _certify(self, job: Job, settings: Settings) -> dict[str, Array]:
        x = job.arrays["x"]
        padded = hasattr(self.model, "manifest")  # an artefact; a model fills batches up itself
        outputs = (padded_audit if padded else type(self.model).audit)(self.model, x, settings.batch_size)
        plain = {name: value for name, value in outputs.items() if value.ndim == 1 and name != "epsilon"}
        return {"radius": plain.pop("certified_radius"), **plain}

    def _audit(self, job: Job, settings: Settings) -> dict[str, Array]:
        return padded_audit(self.model, job.arrays["x"], settings.batch_size)

    def _perturb(self, job: Job, settings: Settings) -> dict[str, Array]:
        from defended.attacks.core.attack import Attack

        index = {"index": job.arrays["index"]} if isinstance(settings.attack, Attack) else {}
        found = settings.attack(self.model, job.arrays["x"], job.arrays.get("labels"), **index)
        return {"perturbed": np.asarray(found)}


def padded_audit(artefact: Artefact, x: Array, batch_size: int) -> dict[str, Array]:
    """Return what `artefact.audit` gives in batches of one size: the last one is filled up with its last input.

    The shape of a batch may change the order of float32 sums. Where verdicts are random, no batch is filled up, so
    that no noise is drawn for nothing; and where a batch would share its noise, as in artefacts of earlier versions,
    each input is judged alone.
    """
    sampled = artefact.manifest.sampling is not None
    if sampled and not artefact.manifest.noise_per_input:
        batch_size = 1
    missing = -len(x) % batch_size if len(x) and not sampled else 0
    filled = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
    return {name: value[: len(x)] for name, value in artefact.audit(filled, batch_size).items()}


def threads_in_use() -> int:
    """Return the number of TensorFlow's threads within an operation, in this process."""
    import os

    import tensorflow as tf

    found = tf.config.threading.get_intra_op_parallelism_threads()
    return int(found or len(os.sched_getaffinity(0)))


def use_threads(threads: int) -> None:
    """Set the number of TensorFlow's threads within an operation.

    Raises:
        RuntimeError: TensorFlow already runs with another number.
    """
    import tensorflow as tf

    if threads == threads_in_use():
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise RuntimeError(
            f"`threads`={threads}, and TensorFlow runs already with {threads_in_use()} in this process. Set it before "
            "TensorFlow's first operation, or leave `threads` out."
        ) from error
