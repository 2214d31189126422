"""Where verdicts come from: a request log that grows, or a server's counters."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from defended.exceptions import SourceError
from defended.serving.clients.logged_answers import LoggedAnswer, log_files, read_request_log

COUNTER = "defended_verdicts_total"

# A page of counters is some kilobytes long; whatever is longer than this is not one.
_MOST_BYTES = 16 * 2**20


def new_answers(path: Path, position: dict[str, int], name: str | None) -> Iterator[LoggedAnswer]:
    """Yield the answers of a log beyond `position`, which moves along; a torn record at the end waits for next time.

    A file that its server removed is forgotten.

    Args:
        path: a file or a folder of `RequestLog`.
        position: how far each file was read, records by file name; moved past each answer when it is yielded.
        name: name of the model; None where the log has only one.

    Raises:
        SourceError: the log is missing, or it holds several models and `name` does not say which.
        RequestLogError: a record is damaged.
    """
    if not path.exists():
        raise SourceError(f"{path} is not a request log: nothing is there.")
    files = log_files(path) if path.is_dir() else [path]
    for gone in set(position) - {file.name for file in files}:
        del position[gone]
    models: set[str] = set()
    for file in files:
        seen = position.get(file.name, 0)
        try:
            for number, answer in enumerate(read_request_log(file)):
                models.add(answer.model)
                if name is None and len(models) > 1:
                    raise SourceError(f"{path} holds several models: {', '.join(sorted(models))}. Say which by name.")
                if number < seen:
                    continue
                position[file.name] = number + 1
                if name is None or answer.model == name:
                    yield answer
        except FileNotFoundError:
            position.pop(file.name, None)


@dataclass
class CounterPosition:
    """The counters at the last look; None before the first."""

    answered: int | None = None
    rejected: int | None = None


def new_counts(page: str, position: CounterPosition, name: str | None, version: int | None) -> tuple[int, int]:
    """Return the verdicts counted since the last look, `(total, rejected)`, from a page of counters.

    `position` moves along; the first look only sets it. Counters that fell were started anew, so what they show is new.

    Args:
        page: the page, in Prometheus's text format.
        position: the counters at the last look; moved.
        name: name of the model; None for the only one.
        version: version of the model; None for all.

    Raises:
        SourceError: the page is not in that format, its counters are not finite or are negative, or they are of several
            models and `name` does not say which.
    """
    from prometheus_client.parser import text_string_to_metric_families

    counts, models = {"answered": 0.0, "rejected": 0.0}, set()
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name != COUNTER:
                    continue
                labels = sample.labels
                models.add(labels.get("model", ""))
                of_version = version is None or str(version) == labels.get("version")
                if of_version and name in (None, labels.get("model")) and labels.get("verdict") in counts:
                    counts[labels["verdict"]] += sample.value
    except ValueError as error:
        raise SourceError(f"The page is not in Prometheus's text format: {error}.") from error
    if not models:
        # A server that has judged nothing yet may show no counter.
        if position.answered is None:
            position.answered = position.rejected = 0
        return 0, 0
    if name is None and len(models) > 1:
        raise SourceError(f"The counters are of several models: {', '.join(sorted(models))}. Say which by name.")
    if not all(math.isfinite(value) and value >= 0 for value in counts.values()):
        raise SourceError(f"The counters {COUNTER} must be finite and not negative. Received: {counts}.")
    answered, rejected = int(counts["answered"]), int(counts["rejected"])
    before = position.answered, position.rejected
    position.answered, position.rejected = answered, rejected
    if before[0] is None or before[1] is None:
        return 0, 0
    new = answered - before[0], rejected - before[1]
    if min(new) < 0:
        new = answered, rejected
    return sum(new), new[1]


def scrape(url: str, token: str | None = None, timeout: float = 10.0) -> str:
    """Return a page of counters; an address without a path is a server's, whose page is `/metrics`.

    Raises:
        SourceError: the page cannot be read.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SourceError(f"{url} is not an address of counters: write one such as http://localhost:8501.")
    if parts.path in ("", "/"):
        url = f"{parts.scheme}://{parts.netloc}/metrics"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (http or https, seen above)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            content = response.read(_MOST_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SourceError(f"{url} cannot be read: {getattr(error, 'reason', None) or error}.") from error
    if len(content) > _MOST_BYTES:
        raise SourceError(f"{url} is longer than {_MOST_BYTES} bytes: that is not a page of counters.")
    return content.decode("utf-8", "replace")
