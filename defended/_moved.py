"""Module names of earlier versions: each resolves to the module that holds its content now, on first use."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

MOVED = {
    "defended.attacks.attack": "defended.attacks.core.attack",
    "defended.attacks.batches": "defended.attacks.core.batches",
    "defended.attacks.boundary_search": "defended.attacks.black_box.boundary_search",
    "defended.attacks.carlini_wagner": "defended.attacks.gradient.carlini_wagner",
    "defended.attacks.certificate_descent": "defended.attacks.gradient.certificate_descent",
    "defended.attacks.checks": "defended.attacks.core.checks",
    "defended.attacks.chunk_store": "defended.attacks.measurement.chunk_store",
    "defended.attacks.comparison": "defended.attacks.measurement.tables",
    "defended.attacks.decision": "defended.attacks.black_box.decision_attack",
    "defended.attacks.degradation_attack": "defended.attacks.composed.degradation_attack",
    "defended.attacks.degradation_monitor": "defended.attacks.measurement.callback",
    "defended.attacks.descent": "defended.attacks.gradient.loop",
    "defended.attacks.ensemble": "defended.attacks.composed.ensemble",
    "defended.attacks.evasive_descent": "defended.attacks.gradient.evasive_descent",
    "defended.attacks.figures": "defended.attacks.measurement.result",
    "defended.attacks.foolbox_adapter": "defended.attacks.composed.foolbox_adapter",
    "defended.attacks.gradient_attack": "defended.attacks.gradient.gradient_attack",
    "defended.attacks.intervals": "defended.statistics.intervals",
    "defended.attacks.measure": "defended.attacks.measurement.susceptibility",
    "defended.attacks.objectives": "defended.attacks.gradient.objectives",
    "defended.attacks.pgd": "defended.attacks.gradient.pgd",
    "defended.attacks.pieces": "defended.attacks.measurement.engine",
    "defended.attacks.plots": "defended.attacks.measurement.plots",
    "defended.attacks.projections": "defended.attacks.core.balls",
    "defended.attacks.records": "defended.attacks.measurement.records",
    "defended.attacks.rules": "defended.attacks.gradient.rules",
    "defended.attacks.score_descent": "defended.attacks.black_box.score_descent",
    "defended.attacks.score_search": "defended.attacks.black_box.score_descent",
    "defended.attacks.smoothed_pgd": "defended.attacks.gradient.smoothed_pgd",
    "defended.attacks.square": "defended.attacks.black_box.square_attack",
    "defended.attacks.square_windows": "defended.attacks.black_box.square_windows",
    "defended.gloro.bounds": "defended.numerics.matrix_norms",
    "defended.gloro.convolutions": "defended.numerics.convolution_norms",
    "defended.gloro.eigenvalues": "defended.numerics.eigenvalues",
    "defended.gloro.sliding_window": "defended.numerics.sliding_windows",
    "defended.network_checks": "defended.networks.checks",
    "defended.serving.agreement": "defended.serving.exporting.agreement",
    "defended.serving.artefact": "defended.serving.artefacts.artefact",
    "defended.serving.audit": "defended.serving.auditing.audit",
    "defended.serving.auditing.comparison": "defended.serving.auditing.baseline",
    "defended.serving.auditing.draws": "defended.serving.auditing.sampling_cost",
    "defended.serving.canonical": "defended._io",
    "defended.serving.client": "defended.serving.clients.client",
    "defended.serving.cluster.audited": "defended.serving.cluster.remote",
    "defended.serving.cpp_loader": "defended.serving.artefacts.cpp_loader",
    "defended.serving.drift": "defended.serving.exporting.drift",
    "defended.serving.examples": "defended.serving.artefacts.tf_example",
    "defended.serving.export": "defended.serving.exporting.export",
    "defended.serving.export_arguments": "defended.serving.exporting.arguments",
    "defended.serving.figures": "defended.serving.auditing.pictures",
    "defended.serving.graph_ops": "defended.serving.artefacts.allowed_ops",
    "defended.serving.manifest": "defended.serving.artefacts.manifest",
    "defended.serving.model_card": "defended.serving.exporting.model_card",
    "defended.serving.monitor": "defended.serving.monitoring.rejection_monitor",
    "defended.serving.monitoring.process": "defended.serving.monitoring.test_martingale",
    "defended.serving.onnx_export": "defended.serving.exporting.onnx_export",
    "defended.serving.onnx_model": "defended.serving.artefacts.onnx_model",
    "defended.serving.page": "defended.serving.auditing.report_page",
    "defended.serving.report": "defended.serving.auditing.report",
    "defended.serving.request_log": "defended.serving.clients.request_log",
    "defended.serving.sample": "defended.serving.exporting.arguments",
    "defended.serving.saved_model": "defended.serving.exporting.saved_model",
    "defended.serving.server.settings": "defended_settings.server",
    "defended.serving.serving_files": "defended.serving.exporting.deployment_files",
    "defended.serving.server.examples": "defended.serving.server.classification",
    "defended.serving.signing": "defended.serving.artefacts.signing",
    "defended.serving.staging": "defended.serving.exporting.staging",
    "defended.serving.training_run": "defended.training.training_run",
    "defended.serving.transports": "defended.serving.clients.transports",
    "defended.serving.warm_up": "defended.serving.exporting.warm_up",
    "defended.training.balance": "defended.gloro.reparametrise.balance",
    "defended.training.centring": "defended.gloro.reparametrise.centre",
    "defended.training.chain_layers": "defended.gloro.reparametrise.chain",
    "defended.training.sharpening": "defended.gloro.reparametrise.sharpen",
}
"""Modules by their earlier name."""


class MovedModule(ModuleType):
    """A module under its earlier name; its public and private names are those of the module that took its place."""

    def __getattr__(self, name: str) -> Any:
        # What looks through all modules asks for such names, and would import everything.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(importlib.import_module(MOVED[self.__name__]), name)


def register() -> None:
    """Make the earlier names importable; nothing is imported yet."""
    for name in MOVED:
        sys.modules.setdefault(name, MovedModule(name, "An earlier name of this module."))


def moved_attribute(package: str, name: str) -> Any:
    """The module that was `package.name`; `AttributeError` where there was none."""
    if f"{package}.{name}" in MOVED:
        return sys.modules[f"{package}.{name}"]
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
