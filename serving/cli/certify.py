"""`defended certify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defended_cli.common import Data, Limit, Scale, argument, load_points, option, print_rate, standardisation_of
from defended_cli.config import Config
from defended_cli.engine import Address, EngineName, Threads, Workers, opened, start


def certify(
    model: Annotated[Path, argument("A defended model, or a directory NAME/VERSION.", "MODEL.keras|ARTEFACT")],
    out: Annotated[Path, option("Gets shards/*.parquet and manifest.json.", "DIR")],
    data: Data = "digits",
    scale: Scale = "auto",
    limit: Limit = 0,
    batch_size: Annotated[int, option("Inputs per run. Another number may change the last digits.", min=1)] = 256,
    shard_size: Annotated[int, option("Inputs per file, a multiple of the batch size.", min=1)] = 2048,
    engine: EngineName = "local",
    workers: Workers = None,
    threads: Threads = None,
    ray_address: Address = None,
    config: Config = None,
) -> None:
    """Judge every test point, and keep label, rejection and certified radius in Parquet files.

    The same command goes on where a killed one stopped, with either engine: the files are the same, byte for byte.

    ```
    defended certify runs/digits/model.keras --data digits --out runs/certificates
    defended certify models/digits/1 --data digits --out runs/certificates --engine ray --workers 8
    ```
    """
    start(engine, threads)
    x, y = load_points(data, limit, scale, standardisation_of(model))

    from defended.serving import cluster

    with opened(engine, model, workers=workers, threads=threads, address=ray_address) as opened_engine:
        found = cluster.certify(opened_engine, x, y, out=out, batch_size=batch_size, shard_size=shard_size)
    figures = found.summary()
    for name in ("rejection_rate", "vra", "vra_2eps", "fpr_upper"):
        rate = figures[name]
        print_rate(name, rate["value"], rate["interval"], rate["confidence"])
    typer.echo(f"Certificates: {out / 'shards'}")
