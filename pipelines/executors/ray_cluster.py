"""Being connected to a Ray cluster: the one at hand, the one that is named, or one started here and ended again."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from typing import Any

from intune.pipelines.budget import Budget, ray_is_inherited
from intune.pipelines.errors import ConfigError

LEAST_STORE = 128 << 20
"""Bytes of shared memory below which Ray's object store does not start."""

# The garbage collector may close a loader in the middle of anything, also of what is done under this.
_lock = threading.RLock()
_users = 0
_started = ""  # the connection to the Ray started here, which its users share


def connect(budget: Budget) -> Any:
    """Ray, connected: to the cluster at hand or named by ``RAY_ADDRESS``, else to one started on this machine.

    A cluster started here wants a token and has no dashboard. (Some of its ports listen on every address,
    whatever address it is given: the token is what protects it.)

    Raises:
        ConfigError: this process is the fork of one that is connected to Ray.
    """
    global _users, _started
    if ray_is_inherited():
        raise ConfigError(
            "`executor`='ray' cannot work in the fork of a process that is connected to Ray; start this one by 'spawn' "
            "(multiprocessing.get_context), call ray.init only after the fork, or use executor='threads'"
        )
    with _lock:
        _prepare()
        import ray

        if ray.is_initialized():
            if connection(ray) == _started:
                _users += 1
        elif os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",  # else Ray takes one that `ray start` left a note of, running or not
                num_cpus=max(1, budget.cpus),
                include_dashboard=False,
                object_store_memory=_store_bytes(budget),
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
            _users, _started = 1, connection(ray)
        return ray


def connection(ray: Any) -> str:
    """Which connection to Ray this process has: another one after every `ray.init`; empty where it has none."""
    if not ray.is_initialized():
        return ""
    here = ray.get_runtime_context()
    # A driver's number comes from that of its job, which is the first of every cluster.
    return f"{here.get_node_id()}/{here.get_worker_id()}"


def started_here(used: str) -> bool:
    """Whether a `connection` is to the Ray that `connect` started: this process has it for itself."""
    return used == _started != ""


def capturing_group(ray: Any) -> Any:
    """The placement group that this task or actor runs in, if what it starts is to run there as well, as in a trial of
    Ray Tune; else None."""
    if not ray.get_runtime_context().should_capture_child_tasks_in_placement_group:
        return None
    return ray.util.get_current_placement_group()  # None in a driver, which captures always


def free_cpus(ray: Any, group: Any = None) -> int:
    """Processors that nobody holds: of a placement group, or of the cluster outside of all groups."""
    name = "CPU" if group is None else f"CPU_group_{group.id.hex()}"
    return int(ray.available_resources().get(name, 0))


def attach() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, if there is one; start none."""
    if os.environ.get("RAY_ADDRESS"):
        with _lock:
            import ray

            if not ray.is_initialized():
                ray.init(logging_level=logging.ERROR)


def disconnect(ray: Any, used: str) -> None:
    """Shut down the Ray that `connect` started, with its last user.

    Args:
        ray: what `connect` returned.
        used: the `connection` at that time; somebody may have shut Ray down since and started another.
    """
    global _users, _started
    with _lock:
        if used == _started != "":
            _users -= 1
            if _users == 0:
                _started = ""
                if connection(ray) == used:
                    ray.shutdown()


def _prepare() -> None:
    """What Ray reads from the environment when it is imported or started."""
    # Otherwise Ray warns that a future version will leave the accelerators' variables alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    named = os.environ.get("RAY_ADDRESS") or {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(os.environ)
    if not named and "ray" not in sys.modules:
        # Whoever reaches a port of a cluster without a token can run code on it. Ray takes the mode over when it
        # is imported; where that has happened already, its own default holds (a token, from Ray 2.59 on).
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _store_bytes(budget: Budget) -> int:
    """Shared memory of a Ray started here: the budget, as far as half of the machine's shared memory goes."""
    stat = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    room = stat.f_bavail * stat.f_frsize // 2 if stat else LEAST_STORE
    return max(LEAST_STORE, min(budget.memory, room))
