"""Guards as artefacts and ONNX files: the same verdicts and reasons, audited through the artefact."""

import functools

import numpy as np
import pytest
from keras import layers
from nets import finalized, randomised, sequential

from defended import MembershipGuard
from defended.attacks import CertificateDescent
from defended.layers import MinMax
from defended.membership import REASONS, MahalanobisScore, NearestNeighbourScore, StoredPoints
from defended.serving import audit, export, export_onnx, load, load_onnx


@functools.cache
def guard_of(kind):
    """Return a guard and inputs that it answers and rejects; no test changes them."""
    rng = np.random.default_rng(0)
    body = layers.Flatten(), layers.Dense(6, activation="relu"), layers.Dense(3)
    if kind == "mahalanobis":  # the only one with a convolution, whose derivatives take long to convert
        body = layers.Conv2D(4, 3, strides=2, padding="same"), MinMax(), layers.Flatten(), layers.Dense(3)
    model = finalized(randomised(sequential((6, 6, 1), *body), rng, 0.5), 0.3)
    x, y = rng.uniform(size=(120, 6, 6, 1)).astype("float32"), rng.integers(0, 3, 120)
    oracle, options = {
        "points": lambda: (StoredPoints(x), {}),
        "separated": lambda: (StoredPoints(x[:40]), {"accept": "separated"}),
        "mahalanobis": lambda: (MahalanobisScore(x, y, x), {}),
        "neighbours": lambda: (NearestNeighbourScore(x, x), {}),
    }[kind]()
    guard = MembershipGuard(model, oracle, 1, **options)
    guard.finalize()
    noise = 0.04 * rng.standard_normal((150, 6, 6, 1))
    inputs = np.concatenate([x[rng.integers(0, 40, 150)] + noise, x[:50]])
    # Between two stored points that the model tells apart, and far from the others.
    label = np.argmax(guard.undefended_logits(x), axis=1)
    others = x[label != label[0]]
    a, b = x[0], others[0] if len(others) else -x[0]
    between = a + np.linspace(0, 1, 41).reshape(-1, 1, 1, 1) * (b - a)
    return guard, np.concatenate([inputs, between, 3 * inputs[:40]]).astype("float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns the artefact of a kind of guard, which is exported once."""
    options = {"onnx": False, "warm_up": False, "serving_files": False}
    return functools.cache(lambda kind: export(guard_of(kind)[0], tmp_path_factory.mktemp(kind), "guard", **options))


@pytest.mark.parametrize("kind", ["points", "separated", "mahalanobis", "neighbours"])
def test_artefact_and_onnx_file_answer_with_the_same_reasons(kind, exported, tmp_path):
    guard, x = guard_of(kind)
    x = np.concatenate([x, np.full_like(x[:1], np.nan)])
    verdicts, reasons = guard.verdicts(x), guard.reasons(x)
    assert {*reasons} >= {"answered", "not certified", "not finite"}
    with load(exported(kind)) as artefact:
        found = [artefact.audit(x)]
        assert artefact.manifest.defence == "MembershipGuard"
        assert tuple(artefact.manifest.certificate_assumptions) == guard.certificate_assumptions
    if kind != "points":  # whose graph is a part of that of "separated"
        export_onnx(guard, tmp_path / "guard.onnx", audit=kind != "neighbours")
        found.append(load_onnx(tmp_path / "guard.onnx").run(x))
    assert ["certified_radius" in outputs for outputs in found] == [True, kind != "neighbours"][: len(found)]
    for outputs in found:
        assert np.array_equal(outputs["label"], verdicts.label)
        assert np.array_equal(np.array(REASONS)[outputs["reason"]], reasons)
        if "certified_radius" in outputs:
            np.testing.assert_allclose(outputs["certified_radius"], verdicts.radius, rtol=1e-4, atol=1e-5)


def test_an_audit_through_the_artefact_breaks_nothing(exported):
    """Not even what only neighbours answer; without them, a guard's answers are its model's."""
    guard, x = guard_of("separated")
    report = audit(exported("separated"), x, np.zeros(len(x), int), model=guard, attack=CertificateDescent(steps=20))
    assert report.attack.broken_answers == report.attack.broken_availability == 0


def test_separated_answers_go_out_with_the_artefact(exported):
    """What only neighbours answer must be answered there too: the model alone rejects it."""
    guard, x = guard_of("separated")
    more = guard.base.verdicts(x).rejected & ~guard.verdicts(x).rejected
    assert more.sum() > 5
    with load(exported("separated")) as artefact:
        assert np.array_equal(artefact(x[more])["label"], guard.verdicts(x[more]).label)


def test_a_store_that_is_searched_by_faiss_is_not_exported(tmp_path):
    guard, _ = guard_of("points")
    points = guard.oracle.points.numpy().reshape(-1, 6, 6, 1)
    outside = MembershipGuard(guard.base, StoredPoints(points, max_in_graph=10))
    with pytest.raises(RuntimeError, match="cannot be exported"):
        export(outside, tmp_path, "guard")
    assert not (tmp_path / "guard" / "1").exists()
