"""A server's life: it loads, listens, looks for new versions, and ends without losing what it accepted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from defended.serving.clients.request_log import RequestLog
from defended.serving.server.grpc_service import GrpcApi
from defended.serving.server.inference import Inference
from defended.serving.server.metrics import Metrics
from defended.serving.server.rest import RestApi
from defended.serving.server.security import tls_context
from defended.serving.server.store import ModelStore
from defended_settings.server import ServerSettings

_LOG = logging.getLogger(__name__)


class Server:
    """TensorFlow Serving's REST and gRPC APIs over verified artefacts; lives in one event loop.

    Args:
        settings: what and where it serves.
        log: where answers are logged; the server closes it when it stops.
    """

    def __init__(self, settings: ServerSettings, log: RequestLog | None = None) -> None:
        self.settings, self.metrics, self._log = settings, Metrics(), log
        self._runs = ThreadPoolExecutor(settings.threads, "model run")
        self._loads = ThreadPoolExecutor(1, "model load")
        self._decoder = ThreadPoolExecutor(1, "decode")
        self.store = ModelStore(settings, self._runs, self._loads, self.metrics)
        self._inference = Inference(settings, self.store, self.metrics, log)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._grpc: GrpcApi | None = None
        self._grpc_server: Any = None
        self._polling: asyncio.Task[None] | None = None
        self.rest_port: int | None = None
        self.grpc_port: int | None = None
        if log is not None:
            self.metrics.log_losses = lambda: dict(log.lost)
            self.metrics.log_written = lambda: log.written

    @property
    def rest_url(self) -> str:
        """The address of REST, such as `http://127.0.0.1:8501`."""
        return f"{'https' if self.settings.certificate else 'http'}://{self._shown_host}:{self.rest_port}"

    @property
    def grpc_url(self) -> str:
        """The address of gRPC, such as `grpc://127.0.0.1:8500`."""
        return f"{'grpcs' if self.settings.certificate else 'grpc'}://{self._shown_host}:{self.grpc_port}"

    async def start(self) -> None:
        """Load the models and listen.

        Raises:
            ValueError: no model in the folder loads; the log says why for each.
            OSError: the folder cannot be read, or a port is taken.
        """
        try:
            await self.store.poll()
            if not self.store.names:
                raise ValueError(
                    f"{self.settings.directory} holds no model that loads. Give a folder of NAME/VERSION artefacts, as "
                    "`defended export --to` makes it, or one model's folder; the log above names what was refused."
                )
            if self.settings.rest_port is not None:
                await self._start_rest(self.settings.rest_port)
            if self.settings.grpc_port is not None:
                await self._start_grpc(self.settings.grpc_port)
        except BaseException:
            await self.stop()
            raise
        self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Refuse new requests, finish the accepted ones within `shutdown_timeout`, and free everything."""
        self._inference.is_draining = True
        grace = self.settings.shutdown_timeout
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        if self._grpc is not None:
            await self._grpc.set_serving(False)
            await self._grpc_server.stop(grace)
        deadline = asyncio.get_running_loop().time() + grace
        while self._inference.in_work and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        if self._runner is not None:
            await self._runner.cleanup()
        for executor in (self._decoder, self._loads, self._runs):
            await asyncio.to_thread(executor.shutdown)
        self.store.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    async def _start_rest(self, port: int) -> None:
        self._runner = web.AppRunner(
            RestApi(self._inference, self._decoder).application(),
            access_log=None,
            keepalive_timeout=self.settings.read_timeout,  # also for a client that sends no header
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(
            self._runner.server,  # type: ignore[arg-type]  # a factory of protocols
            self.settings.host,
            port,
            ssl=tls_context(self.settings.certificate, self.settings.key),
        )
        self.rest_port = self._listener.sockets[0].getsockname()[1]

    async def _start_grpc(self, port: int) -> None:
        self._grpc = GrpcApi(self._inference)
        self._grpc_server = self._grpc.server()
        self.grpc_port = self._grpc.bind(self._grpc_server, self.settings.host, port)
        await self._grpc_server.start()
        await self._grpc.set_serving(True)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            try:
                await self.store.poll()
            except Exception:
                _LOG.exception("The folder of models cannot be read; the loaded models are still served.")

    @property
    def _shown_host(self) -> str:
        return f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host


async def serve_until_told(server: Server, started: Callable[[], object] = lambda: None) -> None:
    """Run a server until SIGTERM or SIGINT; `started` is called when it listens."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    # What is loaded stays: the garbage collector need not look through it again at every batch of requests.
    gc.freeze()
    started()
    await stop.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # the second one ends the process at once
    await server.stop()


@contextlib.contextmanager
def running(directory: Any, *, log: RequestLog | None = None, **settings: Any) -> Iterator[Server]:
    """Run a server in a thread for the block, on free ports of loopback; for tests, notebooks and audits.

    Args:
        directory: as `ServerSettings.directory`.
        log: where answers are logged.
        **settings: the other fields of `ServerSettings`.

    Yields:
        The server, listening: its `rest_url` and `grpc_url` go to a `Client`.

    Raises:
        ValueError, OSError: as `Server.start`.
    """
    chosen = ServerSettings(directory, **{"rest_port": 0, "grpc_port": 0, **settings})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="defended server", daemon=True)
    thread.start()
    try:
        server = Server(chosen, log)
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
