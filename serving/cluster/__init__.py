"""Certification, attack and audit in pieces, by the processes of one machine or of many.

    with open_engine("ray", model, workers=8) as engine:
        certify(engine, x, y, out="runs/certificates")
        measure(engine, x, y, CertificateDescent(), out="runs/attack")

Pieces are ranges of inputs, kept as Parquet files; kill any worker or the driver, and the same call goes on. The engine
changes nothing in the results: "local" and "ray" write the same files, byte for byte, on the same kind of machine.
"""

from defended.exceptions import WorkerLostError
from defended.serving.cluster.certify import Certificates, certify
from defended.serving.cluster.engines import ClusterEngine, LocalEngine, open_engine
from defended.serving.cluster.measure import measure
from defended.serving.cluster.remote import DistributedArtefact, RemoteAttack
from defended.serving.cluster.shards import ParquetStore, read_shards, verify_run

__all__ = [
    "open_engine",
    "ClusterEngine",
    "LocalEngine",
    "certify",
    "Certificates",
    "measure",
    "DistributedArtefact",
    "RemoteAttack",
    "ParquetStore",
    "read_shards",
    "verify_run",
    "WorkerLostError",
]
