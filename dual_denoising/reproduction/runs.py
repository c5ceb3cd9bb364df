"""The runs of a reproduction: each a process of its own, kept where it is done, resumed if not."""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

from dual_denoising.data.storage import read_json, write_text
from dual_denoising.errors import InputError
from dual_denoising.reproduction.study import Job

# on Linux a run is killed where this process is, so that two never write to one folder
LIBC, PDEATHSIG = ctypes.CDLL(None) if sys.platform == "linux" else None, 1
ROOT = Path(__file__).resolve().parents[2]  # whose folder scripts/ holds the scripts


class Ledger:
    """{run: its command} of all runs that ended well, in a file that is whole after every one."""

    def __init__(self, path: Path):
        self.path, self.lock = path, Lock()
        self.done: dict[str, str] = read_json(path)

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that are not done, or whose folder is gone.

        Raises InputError where a run of the name was made by another command.
        """
        left = []
        for job in jobs:
            folder = Path("runs", job.name)
            command = self.done.get(job.name) if folder.exists() else None
            if command not in (None, job.command):
                raise InputError(f"{folder}: of other settings; choose another name=, or remove it")
            if command is None:
                left.append(job)
        return left

    def add(self, job: Job) -> None:
        with self.lock:
            self.done[job.name] = job.command
            write_text(self.path, json.dumps(self.done, indent=1))


def run_all(pending: Sequence[Job], ledger: Ledger, at_once: int, data_root: str) -> None:
    """Runs these jobs, ``at_once`` at a time; a measure waits for its model.

    Raises InputError with the words of the first that fails, when those beside it have ended.
    """
    futures: dict[str, Future] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for number, job in enumerate(pending, 1):  # in this order, so none waits for a later one
            needs = futures.get(job.trained) if job.measure else None
            title = f"{number}/{len(pending)} {job.name}"
            futures[job.name] = pool.submit(_run, job, title, ledger, needs, data_root)
        try:
            for future in futures.values():
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run(job: Job, title: str, ledger: Ledger, needs: Future | None, data_root: str) -> None:
    if needs is not None:
        needs.result()
    print(title, flush=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{job.script}.py"), *job.arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(job.threads), "DUAL_DENOISING_DATA": data_root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(LIBC.prctl, PDEATHSIG, signal.SIGKILL) if LIBC else None,
    )
    folder = Path("runs", job.name)
    if folder.exists():  # a run that failed its checks leaves none
        write_text(folder / "output.log", done.stdout)
    if done.returncode:
        last = (done.stdout.splitlines() or [f"status {done.returncode}"])[-1]
        raise InputError(f"{shlex.quote(job.name)}: {last.removeprefix('error: ')}")
    ledger.add(job)
