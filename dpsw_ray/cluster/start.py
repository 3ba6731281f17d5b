"""Which cluster a run gets: this process, a running Ray, or a Ray of its own."""

from __future__ import annotations

import functools
import math
import os
import secrets
import socket
from collections.abc import Callable

from dpsw_ray.cluster.groups import Cluster, LocalCluster
from dpsw_ray.config import ClusterConfig
from dpsw_ray.errors import UserError
from dpsw_ray.interrupts import own_sigterm

__all__ = ["connect", "open_cluster"]

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


def open_cluster(config: ClusterConfig) -> Cluster:
    """Returns the cluster a config asks for; close it, or use it in a `with` statement.

    A Ray that this process is already connected to is used as it is. Otherwise `config.address`, else the
    environment's RAY_ADDRESS (set inside a submitted job) names a running cluster, else one is started here.

    Raises:
        UserError: no cluster answers at the address, or it lacks the resources asked for.
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
    if not any(before.values()) and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = _token()

    def stop() -> None:
        ray.shutdown()
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
        )
    except Exception as error:
        stop()
        raise UserError(
            f"Ray did not start on this machine ({_line(error)}); cluster.executor: local runs without it."
        ) from None
    return stop


@functools.cache  # Ray remembers the first token a process used
def _token() -> str:
    return secrets.token_hex(32)


def _attach(address: str, config: ClusterConfig) -> None:
    import ray

    if "://" in address:
        raise UserError(
            f"cluster.address must be host:port or auto, found {address}; from outside a cluster use "
            "`ray job submit`."
        )
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            _knock(host, int(port), min(5.0, config.timeout_s))
        except (OSError, OverflowError) as error:
            raise UserError(_unreachable(address, error)) from None
    elif address != "auto":
        raise UserError(
            f"cluster.address must be host:port (the head's GCS port, usually 6379) or auto, found {address}."
        )
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        ray.shutdown()
        raise UserError(_unreachable(address, error)) from None


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
