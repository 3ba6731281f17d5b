"""MLflow, on the driver only: its import costs 90 MB and its data base wants a single writer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import posixpath
import re
import shlex
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import TrackingConfig

__all__ = ["Tracker", "check_tracking", "open_tracker"]


_LOGGER = logging.getLogger(__name__)
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that went away must not hold up a run for many minutes at every call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_RUN_KEY = "dpsw.key"
_KEY, _PARAM, _TAG, _METRICS, _PAIRS = 250, 6000, 5000, 1000, 100  # MLflow's limits on texts and batches


class Tracker:
    """One MLflow run; without a client, the same interface doing nothing.

    As a context manager it ends the run as FINISHED, FAILED (an exception) or KILLED (an interrupt). Should
    the store fail in the middle, the tracker warns once and goes silent: the run's folder holds everything
    anyway, and a release that was paid for must not be lost to a tracking server.

    Attributes:
        run_id: of the run.
        complete: whether it is one that had FINISHED before and is only looked at again.
    """

    def __init__(self, client: Any = None, run_id: str = "", uri: str = "", complete: bool = False) -> None:
        self._client = client
        self._failed: Any = None
        self._names: dict[tuple[str, str], str] = {}
        self._uri = uri
        self.run_id = run_id
        self.complete = complete

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._client is not None

    @property
    def ui_command(self) -> str:
        """The command that shows the results, or the server's address; empty when disabled."""
        if not self._uri or _is_server(self._uri):
            return _shown(self._uri)
        return f"mlflow ui --backend-store-uri {shlex.quote(_shown(self._uri))}"

    def params(self, values: Mapping[str, Any]) -> None:
        """Records parameters; nested ones as `section.key`, long ones cut at MLflow's limit."""
        if self.enabled:
            from mlflow.entities import Param

            self._log(params=[Param(key, str(value)[:_PARAM]) for key, value in self._named("param", values)])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Records numbers, at a step if given. Infinite ones become tags: MLflow would store 1.8e308."""
        self.step_metrics({name: [(step or 0, value)] for name, value in values.items()})

    def step_metrics(self, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Records whole curves, name -> (step, value) pairs, in as few transactions as possible."""
        if self.enabled:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            named = self._named("metric", {name: tuple(curve) for name, curve in series.items()})
            points = [(name, step, float(value)) for name, curve in named for step, value in curve]
            finite = [Metric(name, value, now, step) for name, step, value in points if math.isfinite(value)]
            self._log(metrics=finite)
            self.tags({name: value for name, _, value in points if not math.isfinite(value)})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags."""
        if self.enabled:
            from mlflow.entities import RunTag

            self._log(tags=[RunTag(key, str(value)[:_TAG]) for key, value in self._named("tag", values)])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copies a file, or all that a folder holds, into the run's artifacts."""
        kind = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        self._try(lambda client: getattr(client, kind)(self.run_id, str(path), folder))

    def figure(self, name: str, png: bytes) -> None:
        """Stores a picture as `figures/<name>.png`."""
        self._try(partial(_log_figure, run_id=self.run_id, name=name, png=png))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self._try(lambda client: client.set_terminated(self.run_id, status))
        if self._failed is not None:  # what is silent has ended all the same, unless the store is gone
            with contextlib.suppress(Exception):
                self._failed.set_terminated(self.run_id, status)

    def _named(self, kind: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Flat values under names that MLflow takes; no two keys of one kind have the same name."""
        pairs = []
        for key, value in sorted(_flat(values), key=lambda pair: pair[0]):
            name = _name(key)
            if self._names.setdefault((kind, name), key) != key:
                name = f"{name[: _KEY - 9]} {hashlib.sha256(key.encode()).hexdigest()[:8]}"
            pairs.append((name, value))
        return pairs

    def _log(self, **entities: list[Any]) -> None:
        for kind, items in entities.items():
            size = _METRICS if kind == "metrics" else _PAIRS
            for start in range(0, len(items), size):
                batch = {kind: items[start : start + size]}
                self._try(partial(_log_batch, run_id=self.run_id, batch=batch))

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._client is None:
            return
        try:
            action(self._client)
        except Exception as error:
            self._client, self._failed = None, self._client
            _LOGGER.warning(
                "MLflow stopped recording (%s); the run goes on, its folder is complete.", _line(error)
            )


def open_tracker(
    config: TrackingConfig,
    output_root: Path,
    run_name: str,
    *,
    parent: str | None = None,
    key: str | None = None,
) -> Tracker:
    """Starts an MLflow run in the configured store, by default a SQLite data base under `output_root`.

    Args:
        config: whether to track, where, and under which experiment.
        output_root: the folder of all runs; gets `mlflow.db` and `mlartifacts/`.
        run_name: the run's name in MLflow.
        parent: the id of the run to nest this one under.
        key: a name that is this run's alone, of letters, digits and . _ - only: the run that bears it already,
            if there is one, goes on.

    Raises:
        UserError: the store does not answer, is not writable, or is not an MLflow store.
    """
    if not config.enabled:
        return Tracker()
    root = Path(output_root).absolute()
    uri = _store(config, root)
    _check(uri)
    try:
        with _alone(uri):
            client = _client(uri)
            experiment = _experiment(
                client, config.experiment, None if _is_server(uri) else root / "mlartifacts"
            )
        tags = {name: value for name, value in (("mlflow.parentRunId", parent), (_RUN_KEY, key)) if value}
        found = client.search_runs([experiment], f"tags.`{_RUN_KEY}` = '{key}'", max_results=1) if key else []
        complete = bool(found) and found[0].info.status == "FINISHED"
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
        run = found[0] if found else client.create_run(experiment, tags=tags, run_name=run_name)
    except Exception as error:
        raise _refused(uri, _line(error)) from None
    return Tracker(client, run.info.run_id, uri, complete)


def check_tracking(config: TrackingConfig, output_root: Path) -> None:
    """Refuses a store that cannot be used, as far as that can be seen without making anything.

    Raises:
        UserError: the store does not answer, is not writable, or is no data base.
    """
    if config.enabled:
        _check(_store(config, Path(output_root).absolute()))


def _store(config: TrackingConfig, root: Path) -> str:
    if config.uri:
        return config.uri
    from sqlalchemy import URL, make_url

    path = str(root / "mlflow.db")
    plain = f"sqlite:///{path}"
    if make_url(plain).database == path:
        return plain
    return URL.create("sqlite", database=path).render_as_string()  # with ? or % in it


def _log_figure(client: Any, run_id: str, name: str, png: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.png")
        path.write_bytes(png)
        client.log_artifact(run_id, str(path), "figures")


def _log_batch(client: Any, run_id: str, batch: dict[str, list[Any]]) -> None:
    client.log_batch(run_id, **batch)


def _client(uri: str) -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(
            client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None)
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _check(uri: str) -> None:
    """Refuses in seconds what MLflow would try for minutes, or create halfway."""
    if _is_server(uri):
        try:
            parts = urlsplit(uri)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=5.0).close()
        except (OSError, ValueError, OverflowError) as error:
            raise _refused(uri, _line(error)) from None
    elif (path := _database(uri)) is not None:
        try:
            if not path.exists():
                existing = next(place for place in path.parents if place.exists())
                if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
                    raise OSError(f"nothing can be written to {existing}")
                return
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("PRAGMA user_version = 0")  # really writes: a read-only file passes BEGIN
                connection.execute("ROLLBACK")
                connection.execute("SELECT count(*) FROM sqlite_master")
        except (OSError, sqlite3.Error) as error:
            raise _refused(uri, _line(error)) from None


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time creates a data base: two at once break MLflow's migrations."""
    path = _database(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow also makes the folder of the address as it is written, where a % means something else.
    stray = [place for place in Path(uri.removeprefix("sqlite:///")).parents if not place.exists()]
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        new = not path.exists() or not path.stat().st_size
        try:
            yield
        except Exception:
            if new:  # half a data base, say on a full disk, would be refused from then on
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
            raise
    finally:
        os.close(folder)
        for place in stray:
            with contextlib.suppress(OSError):
                place.rmdir()


def _database(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "")


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _refused(uri: str, reason: str) -> UserError:
    return UserError(
        f"tracking.uri: MLflow cannot use {_shown(uri)} ({reason}); give the address of a running server or "
        "sqlite:////absolute/path/mlflow.db, or set tracking.enabled: false."
    )


def _shown(uri: str) -> str:
    return re.sub(r"(?<=//)[^/@]*@", "", uri)  # no password on a screen


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _name(key: str) -> str:
    """What MLflow takes for `key`: few signs, and nothing that as a path would be another one."""
    name = re.sub(r"[^\w./: -]", "_", key)[:_KEY] or "_"
    return name if posixpath.normpath(name) == name and name[0] not in "./" else re.sub(r"[./]", "_", name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return pairs
