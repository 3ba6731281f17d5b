"""Which cluster a run gets: this process, a running Ray, or a Ray of its own."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.interrupts import own_sigterm
from dpsw_ray.cluster.groups import Cluster, LocalCluster
from dpsw_ray.config.run import ClusterConfig

__all__ = ["connect", "open_cluster"]

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
_CLUSTERS = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": Ray's processes listen on 127.0.0.1 alone, on Linux too
)
_LONGEST = 24  # bytes of a path below which the names of Ray's sockets still fit what the system allows


def open_cluster(config: ClusterConfig) -> Cluster:
    """Returns the cluster a config asks for; close it, or use it in a `with` statement.

    A Ray that this process is already connected to is used, and must be the one at `config.address`, where that is
    given. Otherwise `config.address`, else the environment's RAY_ADDRESS (set inside a submitted job) names a running
    cluster, else one is started here.

    Raises:
        UserError: no cluster answers at the address, it is another one than that in use, or it lacks the resources.
    """
    if config.executor == "local":
        return LocalCluster(config.actors)
    private, stop = connect(config)
    from dpsw_ray.cluster.ray_cluster import RayCluster

    return RayCluster(config, private=private, stop=stop)


def connect(config: ClusterConfig) -> tuple[bool, Callable[[], None]]:
    """Connects this process to the Ray that `open_cluster` would use, without any workers.

    Returns:
        Whether a Ray was started for this process alone, and what undoes the connection.

    Raises:
        UserError: no cluster answers at the address.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        if config.address is not None:
            _check_same(config.address, ray.get_runtime_context().gcs_address, config)
        return False, lambda: None
    _hush()
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    with own_sigterm():
        if address == "local":
            return True, _start(config)
        _attach(address, config)
    return False, ray.shutdown


def _hush() -> None:
    """Keeps Ray's pages of text about dead workers and nodes off standard output: we say one line about each."""
    import ray._private.worker as worker

    if hasattr(worker, "print_to_stdstream"):  # has no other use where `log_to_driver` is off
        worker.print_to_stdstream = lambda *_, **__: None


def _start(config: ClusterConfig) -> Callable[[], None]:
    """Starts a Ray for this run; returns what ends it."""
    import ray

    # Ray turns token authentication on by itself. Left alone it writes a token file, which later clusters of
    # this user would demand; with authentication off every local user could run code in our actors. A token
    # that dies with this process does neither.
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    folder = _own_folder()
    if not any(before.values()) and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = _token()
    undo = _on_loopback()

    def stop() -> None:
        ray.shutdown()
        undo()
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(config.actors * config.cpus_per_actor)),
            object_store_memory=max(100 << 20, min(1 << 30, memory // 8)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(folder / "r"),  # a name of its own: Ray opens this folder to everybody
        )
    except Exception as error:
        stop()
        raise UserError(
            f"Ray did not start on this machine ({_line(error)}); cluster.executor: local runs without it."
        ) from None
    except BaseException:  # interrupted
        stop()
        raise
    return stop


def _own_folder() -> Path:
    """A folder that its owner alone can enter, for Ray's sockets and logs, on a short enough path."""
    places = (
        os.environ.get("RAY_TMPDIR"),
        tempfile.gettempdir(),
        "/tmp",
        os.environ.get("XDG_RUNTIME_DIR"),
        "/var/tmp",
    )
    for place in filter(None, places):
        if len(os.fsencode(place)) <= _LONGEST:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="dpsw-", dir=place))
    raise UserError(
        f"Ray's sockets need a folder to write to whose path has at most {_LONGEST} bytes: set RAY_TMPDIR to one; "
        "cluster.executor: local runs without it."
    )


def _on_loopback() -> Callable[[], None]:
    """Keeps a Ray that is started next from answering other machines; returns what undoes it."""
    from ray._private import ray_constants

    before, asked = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_CLUSTERS)
    ray_constants.ENABLE_RAY_CLUSTER = False  # of this process
    os.environ[_CLUSTERS] = "0"  # of those that it starts

    def undo() -> None:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if asked is None:
            os.environ.pop(_CLUSTERS, None)
        else:
            os.environ[_CLUSTERS] = asked

    return undo


@functools.cache  # Ray remembers the first token a process used
def _token() -> str:
    return secrets.token_hex(32)


def _attach(address: str, config: ClusterConfig) -> None:
    import ray

    _check_answers(address, config)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        ray.shutdown()
        raise UserError(_unreachable(address, error)) from None


def _check_same(address: str, connected: str, config: ClusterConfig) -> None:
    """Refuses an address of another Ray than the one that this process is connected to; a host has many names."""
    if address in ("local", "auto"):
        return
    _check_answers(address, config)
    if address.rpartition(":")[2] != connected.rpartition(":")[2]:
        raise UserError(
            f"This process is connected to the Ray at {connected} already, and cluster.address is {address}: leave the "
            "address out, or end that connection first (ray.shutdown())."
        )


def _check_answers(address: str, config: ClusterConfig) -> None:
    if "://" in address:
        raise UserError(
            f"cluster.address must be host:port or auto, found {address}; from outside a cluster use "
            "`ray job submit`."
        )
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            _knock(host, int(port), min(5.0, config.timeout_s))
        except (
            OSError,
            OverflowError,
            UnicodeError,
        ) as error:  # the last: a label of a host's name is too long
            raise UserError(_unreachable(address, error)) from None
    elif address != "auto":
        raise UserError(
            f"cluster.address must be host:port (the head's GCS port, usually 6379) or auto, found {address}."
        )


def _knock(host: str, port: int, timeout: float) -> None:
    """Checks that something at the port speaks gRPC; `ray.init` would try anything else for many minutes."""
    with socket.create_connection((host, port), timeout) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        settings = b"\0\0\0\4\0\0\0\0\0"  # RFC 9113: both sides open with a SETTINGS frame, type 4
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        if connection.recv(9)[3:4] != settings[3:4]:
            raise OSError("what listens there is not a Ray head; its GCS port is usually 6379, not 8265")


def _unreachable(address: str, error: Exception) -> str:
    return (
        f"No Ray cluster answers at cluster.address {address} ({_line(error)}); start one with "
        "`ray start --head`, or leave the address out (and RAY_ADDRESS unset) to run on this machine alone."
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
