"""A start on Windows: no module takes at its top what only POSIX has, and the first commands work without it."""

import ast
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import amradio
from amradio.engine import lock
from amradio.errors import UserError

MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog")
SIGNAL = ("SIGKILL", "SIGBUS", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "pthread_sigmask", "alarm", "setitimer")
OS = ("sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "fork", "pread", "pwrite", "statvfs", "setsid", "killpg", "mkfifo")
SOURCES = Path(amradio.__file__).parent
SCRIPT = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {MODULES}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

for name in {MODULES}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for module, names in ((signal, {SIGNAL}), (os, {OS})):
    for name in names:
        delattr(module, name)

from amradio.__main__ import main

for words in (["recipes"], ["teachers"], ["students"], ["schema"], ["distill", "starter", "teachers.dino.wieght=2"], ["--help"]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code or 0
    print("CODE", words[0], code)

from pathlib import Path
from amradio.console import outlive_console
from amradio.engine.lock import Lock

with outlive_console(), Lock(Path("x"), "x") as lock:
    lock.take()
"""


def taken_at_the_top(tree: ast.AST) -> Iterator[str]:
    """What only POSIX has and the import of a module takes; within functions and `try` it may be taken."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
        yield from (name for name in names if name in MODULES)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from (f"{node.value.id}.{node.attr}" for _ in (0,) if node.attr in {"signal": SIGNAL, "os": OS}.get(node.value.id, ()))
        yield from taken_at_the_top(node)


@pytest.mark.slow
def test_no_module_takes_at_its_top_what_only_posix_has():
    taken = {str(file.relative_to(SOURCES)): list(taken_at_the_top(ast.parse(file.read_text()))) for file in SOURCES.rglob("*.py")}
    assert len(taken) > 200
    assert {name: names for name, names in taken.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os, fcntl", ["fcntl"]),
        ("from resource import getrusage", ["resource"]),
        ("class A:\n    END = signal.SIGKILL", ["signal.SIGKILL"]),
        ("if True:\n    CORES = len(os.sched_getaffinity(0))", ["os.sched_getaffinity"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\ndef f():\n    import pwd\n    return signal.SIGKILL", []),
        ("import signal\nSTOP = signal.SIGINT", []),
    ],
)
def test_what_is_taken_at_the_top_is_seen(source, names):
    assert list(taken_at_the_top(ast.parse(source))) == names


@pytest.mark.slow
def test_the_first_commands_do_without_posix(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert codes == [["recipes", "0"], ["teachers", "0"], ["students", "0"], ["schema", "0"], ["distill", "2"], ["--help", "0"]]
    assert "is on a file system without locks" in done.stderr


class Msvcrt:
    """`msvcrt.locking` as on Windows, in one process: a locked byte belongs to one handle, and unlocking what is not locked fails."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.holders: dict[tuple[int, int, int], int] = {}

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert count == 1
        status = os.fstat(handle)
        byte = status.st_dev, status.st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        if mode == self.LK_NBLCK:
            if byte in self.holders:
                raise PermissionError(errno.EACCES, "Permission denied")
            self.holders[byte] = handle
        elif self.holders.pop(byte, None) != handle:
            raise PermissionError(errno.EACCES, "Permission denied")


def test_windows_locks_a_byte_behind_the_text(monkeypatch, tmp_path):
    windows = Msvcrt()
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", windows)
    unlink = Path.unlink

    def unlink_of_windows(path: Path) -> None:
        if windows.holders:
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used by another process")
        unlink(path)

    monkeypatch.setattr(Path, "unlink", unlink_of_windows)
    file = tmp_path / ".lock"
    with lock.Lock(file, "out: x") as held:
        held.take()
        ((_, _, position),) = windows.holders
        assert position > len(file.read_bytes()) > 0
        with lock.Lock(file, "out: x") as other, pytest.raises(UserError, match=f"out: x is in use by process {os.getpid()} on "):
            other.take()
        assert len(windows.holders) == 1, "who did not get it does not release it"
    assert windows.holders == {}
    assert not file.exists()
    with lock.Lock(file, "out: x") as again:
        again.take()
        assert windows.holders
