"""Processes that load images: one that dies, cannot send or has no memory is one sentence, never a hang; resume is exact."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from amradio.data import loading_processes
from amradio.data.loading_processes import load_items
from amradio.errors import UserError


class Items(Dataset):
    """Number -> a tensor; at `at` something happens to the process."""

    def __init__(self, at: int, act: str):
        self.at, self.act = at, act

    def __getitem__(self, number: int) -> tuple[int, torch.Tensor]:
        if number == self.at:
            if self.act == "raise":
                raise UserError("a: one", "b: two")
            if self.act == "memory":
                raise MemoryError
            if self.act == "exit":
                os._exit(3)
            os.kill(os.getpid(), getattr(signal, self.act))
            time.sleep(30)
        return number, torch.full((8,), number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("SIGKILL", r"^a process that loads images \(pid \d+\) was killed, as the system does where memory runs out; .*data\.num_workers"),
        ("SIGBUS", r"^a process that loads images \(pid \d+\) ended with a bus error; /dev/shm has .*--shm-size"),
        ("exit", r"^a process that loads images \(pid \d+\) ended by itself \(exit code 3\)"),
        ("memory", r"^a process that loads images \(pid \d+\) has no memory left"),
        ("raise", r"^a: one\nb: two$"),
    ],
)
def test_a_worker_that_ends_is_one_sentence(act, message):
    found = []
    begun = time.monotonic()
    with pytest.raises(UserError, match=message):
        found.extend(number for number, _ in load_items(Items(3, act), range(10), 1))
    assert found in ([0, 1], [0, 1, 2]), "what it sent last may be lost with it"
    assert time.monotonic() - begun < 60


def test_what_the_main_process_makes_itself_is_refused_alike():
    with pytest.raises(UserError, match=r"^a: one\nb: two$"):
        list(load_items(Items(0, "raise"), range(2), 0))


def test_a_batch_that_shared_memory_cannot_take(monkeypatch):
    """What torch raises where /dev/shm is full, from within a worker."""

    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)\nmore lines")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(loading_processes, "get_worker_info", lambda: object())
    with pytest.raises(UserError, match=r"cannot hand over a batch \(unable to allocate .*\(28\)\); /dev/shm has .*--shm-size=8g"):
        list(load_items(Items(9, "raise"), range(2), 0))


def test_other_errors_of_a_worker_keep_their_traceback():
    with pytest.raises(AttributeError, match="Caught AttributeError"):
        list(load_items(Items(0, "NOSUCHSIGNAL"), range(2), 1))


def _may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not _may_mount(), reason="a mount namespace cannot be made here")
def test_a_shared_memory_of_a_megabyte(tmp_path: Path):
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, torch\nfrom torch.utils.data import Dataset\nfrom amradio.data.loading_processes import load_items\n"
        "from amradio.errors import UserError\nfrom big import Big\n"
        "try:\n    print(len(list(load_items(Big(), range(2), 1))))\nexcept UserError as error:\n    print('refused:', error)\n"
    )
    (tmp_path / "big.py").write_text(
        "import torch\nfrom torch.utils.data import Dataset\nclass Big(Dataset):\n"
        "    def __getitem__(self, number):\n        return torch.ones(4 << 20, dtype=torch.uint8)\n"
    )
    command = f"mount -t tmpfs -o size=1M tmpfs /dev/shm && exec {sys.executable} {script}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        ["unshare", "-m", "bash", "-c", command], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert ended.stdout.startswith("refused: a process that loads images (pid "), ended.stdout + ended.stderr
    assert "/dev/shm has 1 MiB" in ended.stdout
    assert "Traceback" not in ended.stderr
