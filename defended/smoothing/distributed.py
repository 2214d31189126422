"""Verdicts by several devices, each of which judges its share of a batch, with noise of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from defended.defended_model import DefendedModel


def judge_in_replicas(strategy: Any, model: DefendedModel) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function from a batch `[n, ...]` to labels, rejections and radii `[n]`, which judges parts in parallel.

    A replica samples with the copy of the weights on its device; nothing is exchanged before the end.
    """
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync

    def judge(part: Any) -> tuple[Any, ...]:
        outputs = model._outputs(part, frozen=False)
        return outputs["label"], outputs["rejected"], outputs["certified_radius"]

    run = model._compiled("judge in replicas", lambda parts: strategy.run(judge, args=(parts,)))

    def judge_batch(batch: Any) -> tuple[Any, ...]:
        parts = [tf.constant(part) for part in np.array_split(batch, replicas)]
        values = strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )
        judged = [strategy.experimental_local_results(part) for part in run(values)]
        return tuple(np.concatenate([np.asarray(value) for value in parts]) for parts in judged)

    return judge_batch
