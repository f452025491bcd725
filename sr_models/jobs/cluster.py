"""Many files over the machines of a Ray cluster: the same jobs and options, each file written once.

Every node needs this package and sees the files under the same paths. Only settings travel: a worker opens the
model itself, and keeps it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..core.tile_policy import TilePolicy
from ..errors import UserError
from ..files.whole import remove_temporaries
from .job import FileOptions, Job, Outcome
from .model_choice import BUNDLED_NAME, ModelChoice, open_model
from .run import run_jobs

ATTEMPTS = 3
CORES_OF_A_WORKER = 2
CONNECT_SECONDS = 10
LOCAL = "local"

Settings = TypeVar("Settings", Job, ModelChoice)


class Worker:
    """One process of the cluster with the model in it."""

    def __init__(self, choice: ModelChoice):
        self.model = open_model(choice).model
        self.policy = TilePolicy()

    def run(self, job: Job, options: FileOptions) -> Outcome:
        [outcome] = run_jobs(self.model, [job], options, policy=self.policy)
        return outcome

    def process_id(self) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Attempt:
    job: Job
    number: int = 1


def run_on_cluster(
    address: str, choice: ModelChoice, jobs: Iterable[Job], options: FileOptions, workers: int = 0
) -> Iterator[Outcome]:
    """Do the jobs on a cluster; outcomes come as they end, in any order.

    A worker that is lost is replaced and its job is tried again, three times in all. Leaving the iterator early
    stops all work.

    Args:
        address: `auto`, `HOST:PORT`, `ray://HOST:PORT`, or `local` for workers on this machine alone.
        workers: processes; 0 takes one per GPU, or without GPUs one per two cores.

    Raises:
        UserError: where Ray is not installed or the cluster cannot be reached, or the model cannot be opened.
    """
    waiting = list(jobs)
    if not waiting:
        return
    ray = _connect(address)
    try:
        yield from _Pool(ray, choice, options, workers or _default_workers(ray)).outcomes(waiting)
    finally:
        ray.shutdown()


class _Pool:
    def __init__(self, ray: Any, choice: ModelChoice, options: FileOptions, size: int):
        self.ray, self.choice, self.options = ray, choice, options
        self.resources = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        self.idle = [self._worker() for _ in range(size)]
        self.running: dict[Any, tuple[Attempt, Any]] = {}

    def _worker(self) -> Any:
        return self.ray.remote(Worker).options(**self.resources).remote(absolute(self.choice))

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        waiting = deque(Attempt(job) for job in jobs)
        while waiting or self.running:
            while waiting and self.idle:
                attempt, worker = waiting.popleft(), self.idle.pop()
                self.running[worker.run.remote(absolute(attempt.job), self.options)] = (attempt, worker)
            done, _ = self.ray.wait(list(self.running), num_returns=1)
            attempt, worker = self.running.pop(done[0])
            outcome = self._result(done[0], attempt, worker)
            if outcome is None:
                waiting.appendleft(replace(attempt, number=attempt.number + 1))
            else:
                yield outcome

    def _result(self, reference: Any, attempt: Attempt, worker: Any) -> Outcome | None:
        """What became of an attempt; None where its worker was lost and another try is left."""
        errors = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(reference)
        except errors.RayActorError as error:
            reason = _user_reason(error)
            if reason:
                raise UserError(reason) from error
            remove_temporaries(attempt.job.target, of_dead_only=False)
            self.idle.append(self._worker())
            if attempt.number < ATTEMPTS:
                return None
            lost = f"{attempt.job.source}: its worker was lost {ATTEMPTS} times: look at that machine's memory."
            return Outcome(attempt.job, "failed", reason=lost)
        except errors.RayTaskError as error:
            self.idle.append(worker)
            return Outcome(attempt.job, "failed", reason=f"{attempt.job.source}: {_last_line(error)}")
        self.idle.append(worker)
        # A lost worker may have got as far as the rename.
        was_done = outcome.status == "skipped" and attempt.number > 1
        return replace(outcome, job=attempt.job, status="done" if was_done else outcome.status)


def absolute(settings: Settings) -> Settings:
    """The same with absolute paths: workers run in folders of their own."""
    paths = {f.name: getattr(settings, f.name) for f in fields(settings)}
    found = {name: Path(os.path.abspath(path)) for name, path in paths.items() if isinstance(path, Path)}
    if isinstance(settings, ModelChoice) and settings.model != BUNDLED_NAME:
        return replace(settings, model=os.path.abspath(settings.model), **found)
    return replace(settings, **found)


def _connect(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    try:
        import ray
    except ImportError as error:
        raise UserError("A cluster needs Ray: pip install ray, or leave out --ray.") from error
    _require_reachable(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == LOCAL:
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise UserError(f"The Ray cluster at {address} cannot be used ({_last_line(error)}): check it.") from error
    return ray


def _require_reachable(address: str) -> None:
    """Checked here, because Ray itself keeps trying for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        if address in ("auto", LOCAL):
            return
        raise UserError(f"Ray address {address!r} is not valid: give auto, local, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"No Ray cluster answers at {address} ({error}): check the address.") from error


def _default_workers(ray: Any) -> int:
    resources = ray.cluster_resources()
    return int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 1)) // CORES_OF_A_WORKER)


def _user_reason(error: BaseException) -> str:
    """The sentence of a UserError that a worker met while it opened the model; empty for any other loss."""
    text = str(error)
    mark = f"{UserError.__name__}: "
    return text.rsplit(mark, 1)[1].strip().splitlines()[0] if mark in text else ""


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
