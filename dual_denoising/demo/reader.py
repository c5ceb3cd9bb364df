"""Reads a stranger's file in a process of its own, with little memory and time (on Linux)."""

import contextlib
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from dual_denoising.data.files import read_cloud
from dual_denoising.errors import InputError

MEMORY = 2**30  # bytes beyond what the imports take
SECONDS = 10
MOST = 100_000  # points that come back of a scan
POINTS, WORDS = b"p", b"w"  # first byte of an answer: nothing of a file is unpickled


class Reader:
    """Calls ``read_cloud`` in child processes, forked from a server that has its imports loaded."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
        self.seconds, self.memory = seconds, memory
        self.context = multiprocessing.get_context("forkserver")
        # a child imports the script again, and that imports run
        self.context.set_forkserver_preload([__name__, "dual_denoising.run"])

    def __call__(self, path: Path, num_points: int) -> np.ndarray:
        """Points (N, 3); raises InputError, which names the file by its last part alone."""
        ours, theirs = self.context.Pipe(duplex=False)
        child = self.context.Process(target=_read, args=(theirs, path, num_points, self.memory))
        child.start()
        theirs.close()
        late = f"{path.name}: not read in {self.seconds:g} seconds; give a simpler one"
        answer = WORDS + late.encode()
        try:
            if ours.poll(self.seconds):
                answer = ours.recv_bytes()
        except (EOFError, OSError) as error:
            raise InputError(f"{path.name}: it ended its reader; give another") from error
        finally:
            child.kill()
            child.join()
            ours.close()
        if answer[:1] == WORDS:
            raise InputError(answer[1:].decode())
        return np.frombuffer(answer[1:], np.float64).reshape(-1, 3)


def _read(answer: Connection, path: Path, num_points: int, memory: int) -> None:
    """In the child: sends the points, or why there are none."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        points = read_cloud(path, num_points)
        if len(points) > MOST:
            points = np.random.default_rng(0).choice(points, MOST, replace=False)
        content = POINTS + points.astype(np.float64).tobytes()
    except (InputError, OSError) as error:
        content = WORDS + str(error).replace(str(path), path.name).encode()
    with contextlib.suppress(BrokenPipeError):
        answer.send_bytes(content)
