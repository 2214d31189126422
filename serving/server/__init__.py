"""The embedded server: TensorFlow Serving's REST and gRPC APIs over verified artefacts, with `/metrics`.

For development, tests and small sites; it needs the extra `serving`.

with running("models") as server:
    Client(server.rest_url, model="digits").predict(x)
"""

from defended.serving.server.app import Server, running, serve_until_told
from defended_settings.server import ServerSettings

__all__ = ["Server", "ServerSettings", "running", "serve_until_told"]
