"""The command line in processes of its own, forked from one that has imported everything: seconds of imports are paid once."""

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

LONGEST_MESSAGE = 20_000
_CONTEXT = multiprocessing.get_context("forkserver")
_HERE = str(Path(__file__).parent)
_WARM = (
    "amradio.commands.detect",
    "amradio.commands.distill",
    "amradio.commands.doctor",
    "amradio.model",
    "amradio.teachers.embedded_teachers",
    "amradio.teachers.clip",
    "amradio.teachers.dinov2",
    "amradio.teachers.sam",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
    "transformers.models.sam.modeling_sam",
    "transformers.models.auto.modeling_auto",
    "transformers.models.sam.image_processing_sam",
    "transformers.models.bit.image_processing_bit",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
)
"""What commands import late: half of the time of a short run, where each process does it anew."""


def start_server() -> None:
    """Starts the server that processes are forked from, once. What a loader starts first in its place has imported nothing of ours."""
    _CONTEXT.set_forkserver_preload(["processes", "torch._dynamo", *_WARM, "warm"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _HERE if before is None else f"{_HERE}{os.pathsep}{before}"  # the server's own path lacks this folder
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass
class Ended:
    """What a process left behind."""

    code: int
    output: str
    errors: str

    def fault(self) -> str | None:
        """What is wrong with the end of a command that met any input: it is done, or it is refused in a message of a few lines."""
        if "Traceback" in self.output + self.errors:
            return "a traceback: " + self.errors[-1500:]
        if self.code not in (0, 2):
            return f"code {self.code}: {self.errors[-500:]}"
        if self.code == 2 and not re.search(r"^error: .", self.errors, re.M):
            return f"code 2 without a message: {self.errors[-500:]}"
        if len(self.errors) > LONGEST_MESSAGE:
            return f"a message of {len(self.errors):,} characters: {self.errors[:500]}"
        return None


class Running:
    """`amradio WORDS` at work."""

    def __init__(self, words: Sequence[object], folder: Path, environment: Mapping[str, str], prelude: Callable[[], None] | None):
        """prelude: is called in the process first, e.g. to limit it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files = folder / "output.txt", folder / "errors.txt"
        for file in self._files:
            file.write_text("")
        start_server()
        arguments = ([str(word) for word in words], [str(file) for file in self._files], dict(environment), prelude)
        self.process: BaseProcess = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    def wait(self, timeout: float = 240) -> Ended:
        """Until it ends."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"no end after {timeout} s; {self._files[0].read_text()[-2000:]} {self._files[1].read_text()[-2000:]}")
        return Ended(self.process.exitcode, *(file.read_text() for file in self._files))

    def wait_for(self, text: str, timeout: float = 240) -> None:
        """Until it has printed `text`."""
        end = time.monotonic() + timeout
        while text not in self._files[0].read_text():
            assert self.process.is_alive(), f"ended without '{text}': {[file.read_text()[-2000:] for file in self._files]}"
            assert time.monotonic() < end, f"no '{text}' after {timeout} s"
            time.sleep(0.002)

    def send(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start(*words: object, folder: Path, prelude: Callable[[], None] | None = None, **environment: str) -> Running:
    """Starts `amradio WORDS`; its output goes into `folder`."""
    return Running(words, folder, environment, prelude)


def start_several(count: int, *words: object, folder: Path, preludes: Mapping[int, Callable[[], None]] | None = None) -> list[Running]:
    """`count` processes as torchrun starts them on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Running(words, folder / str(rank), common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, (preludes or {}).get(rank))
        for rank in range(count)
    ]


def _run(words: list[str], files: list[str], environment: dict[str, str], prelude: Callable[[], None] | None) -> None:
    # The server may have been started by a loader within the tests' own process, with these signals blocked (data/loading_processes.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    for descriptor, file in zip((1, 2), files, strict=True):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    import torch

    from amradio.__main__ import main

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    code = 1
    try:
        if prelude is not None:
            prelude()
        code = main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# Preludes: what a process does to itself at a step. Functions of a module, so that they can be sent to it.


def at_step(step: int, act: Callable[[], None]) -> None:
    """Calls `act` when `step` is done, before its checkpoint."""
    from amradio.engine.monitor import Monitor

    take = Monitor.take

    def watched(self: Monitor, now: int, *rest: object) -> None:
        take(self, now, *rest)
        if now == step:
            act()

    Monitor.take = watched


def at_step_of_vlm(stage: str, step: int, act: Callable[[], None]) -> None:
    """Calls `act` when `step` of a stage of a vision-language model is done, before its checkpoint."""
    from amradio.downstream.vlm.trainer import Reporter

    end = Reporter.on_step_end

    def watched(self: Reporter, *given, **rest) -> None:
        _, state, _ = given
        if self.stage.name == stage and state.global_step == step:
            act()
        end(self, *given, **rest)

    Reporter.on_step_end = watched


def terminate_self() -> None:
    """SIGTERM, as a cluster sends it."""
    os.kill(os.getpid(), signal.SIGTERM)


def ignore_warnings() -> None:
    """For what imports libraries that warn."""
    warnings.simplefilter("ignore")


def fill_disk(limit: int = 20_000) -> None:
    """From now on no file can grow beyond `limit` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def limit_memory() -> None:
    """2 GiB beyond what the process has already."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30),) * 2)


def poison(teacher: str, call: int) -> None:
    """The teacher whose source ends in this name gives a NaN at its call number `call` of this process."""
    import torch

    from amradio.teachers import Teacher

    calls = []
    forward = Teacher.forward

    def poisoned(self: Teacher, images: torch.Tensor):
        features = forward(self, images)
        if self.source.endswith(teacher):
            calls.append(1)
            if len(calls) == call:
                features.spatial[0, 0, 0, 0] = float("nan")
        return features

    Teacher.forward = poisoned
