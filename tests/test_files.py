"""Paths and texts of the user's: what no file system takes, encodings, lines, names that are not UTF-8, braces."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from amradio.errors import UserError, brief, near_names, nearest, shown
from amradio.files import (
    MOST_EXPANDED,
    disk_errors,
    expand_braces,
    is_path,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    unusable,
    user_path,
)


def problem(function, *given, **named) -> str:
    with pytest.raises(UserError) as caught:
        function(*given, **named)
    (found,) = caught.value.problems
    assert len(found) < 500
    found.encode("utf-8")
    return found


# paths


def test_why_a_file_or_a_folder_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert unusable(tmp_path / "file") is None
    assert unusable(tmp_path, "folder") is None
    reasons = {name: unusable(tmp_path / name) for name in ("other", "file/below", "nothing", "pipe", ".", "loop", "a" * 300, "a\0b")}
    assert list(reasons.values())[:5] == ["is missing", "is missing", "is a link to nothing", "is a pipe", "is a folder"]
    assert all((reason or "").startswith("cannot be reached (") for reason in list(reasons.values())[5:])
    assert unusable(tmp_path / "file", "folder") == "is a file"
    monkeypatch.setattr(os, "stat", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    assert unusable(tmp_path / "file") == "cannot be reached (Permission denied)"


def test_home_folders_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/x/y") == Path("/somewhere/x/y")
    assert user_path("~") == Path("/somewhere")
    assert user_path("~root/x").is_absolute()
    assert user_path("x/~y") == Path("x/~y")
    assert user_path("./~nosuchuser/x") == Path("~nosuchuser/x")
    assert user_path(Path("a/b")) == Path("a/b")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a\0b", "NUL"),
        ("~nosuchuser/x", "there is no user ~nosuchuser"),
        ("~nosuchuser", "there is no user"),
        ("x/" + "n" * 256, "256 bytes"),
        ("x/" + "é" * 128 + "/y", "256 bytes"),
        ("d/" * 3000, "6,000 bytes"),
        ("a\ud800b", "lone surrogate"),
        ("https://example.org/x.jpg", "URL"),
        ("s3://bucket/x", "URL"),
        ("file:///x", "URL"),
    ],
)
def test_what_can_be_no_path_is_refused_by_name(text, what):
    found = problem(user_path, text, "out")
    assert found.startswith("out: ")
    assert what in found


def test_a_name_that_is_not_utf8_is_a_path(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert os.fsencode(user_path(name)).endswith(b"caf\xe9")


def test_longest_names_are_paths(tmp_path):
    path = user_path(f"{tmp_path}/{'n' * 255}")
    path.write_text("x")
    assert read_text(path) == "x"


@pytest.mark.parametrize(("text", "expected"), [("./x", True), ("/x", True), ("~/x", True), ("org/name", False), ("vit_small", False)])
def test_a_path_and_a_name_of_a_hub(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    assert is_path(text) == expected
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to("nowhere")
    assert is_path("org/name")
    assert not is_path("x" * 300)


# names on any console


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("café.jpg", "café.jpg"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        ("a\ud800b", r"a\ud800b"),
        ("\u2028sep", r"\u2028sep"),
        ("\x85\x7f", r"\x85\x7f"),
        (Path("a/b"), "a/b"),
        ("日本", "日本"),
    ],
)
def test_names_are_shown_escaped(name, expected):
    assert shown(name) == expected
    shown(name).encode("utf-8")


def test_every_message_can_be_printed():
    error = UserError(f"{os.fsdecode(b'caf' + bytes([0xE9]))}: x\x1b[31m", "two\nlines")
    assert error.problems == (r"caf\xe9: x\x1b[31m", "two\nlines")
    str(error).encode("utf-8")


def test_values_are_shown_in_brief():
    bomb: list = ["x"] * 9
    for _ in range(12):
        bomb = [bomb] * 9
    cycle: dict = {}
    cycle["a"] = cycle
    for value in ("y" * 10**6, list(range(10**5)), {n: [n] * 100 for n in range(10**4)}, bomb, cycle, 10**5000, b"z" * 10**5, {1, 2}):
        assert len(brief(value)) <= 100
    assert brief(None) == "null"
    assert brief(True) == "true"
    assert brief("a") == "'a'"
    assert brief(-5) == "-5"
    assert brief([1, 2]) == "[1, 2]"
    assert "5,001 digits" in brief(10**5000) or "5,000 digits" in brief(10**5000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wieght", ["spatial_weight", "summary_weight"]),
        ("weight", ["spatial_weight", "summary_weight"]),
        ("summary_wieght", ["summary_weight"]),
        ("Type", ["type"]),
        ("qqq", []),
        ("x" * 10**6, []),
    ],
)
def test_near_names(name, expected):
    assert near_names(name, ["name", "precision", "spatial_weight", "summary_weight", "type"])[: len(expected) or None] == expected
    assert nearest("wieght", ["a_weight"]) == "did you mean 'a_weight'?"


# texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_what_they_are_are_read(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("größe: 日本\r\n".encode(encoding))
    assert read_text(path) == "größe: 日本\r\n"


def test_big_endian_utf16_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xfe\xff" + "a: é".encode("utf-16-be"))
    assert read_text(path) == "a: é"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("a: 1\n# café\n".encode("latin-1"), "byte 11 (0xe9, line 2)"),
        ("a: 1".encode("utf-16-le"), "NUL"),
        (b"\xff\xfea", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0", "(0x89, line 1)"),
        (b"\xff\xff", "(0xff, line 1)"),
    ],
)
def test_other_encodings_are_refused_by_name_and_place(tmp_path, data, what):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    found = problem(read_text, path)
    assert str(path) in found
    assert what in found
    assert "UTF-8" in found or "UTF-16" in found


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in problem(read_text, tmp_path / "pipe")
    assert "a folder" in problem(read_text, tmp_path)
    assert "a device" in problem(read_text, Path("/dev/zero"))
    assert "no such file" in problem(read_text, tmp_path / "none")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in problem(read_text, tmp_path / "loop")
    (tmp_path / "large").write_bytes(b"x" * 11)
    assert "11 bytes" in problem(read_bytes, tmp_path / "large", 10)


def test_lines_end_with_newlines_only(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a\x0cb.jpg\r\nc d.jpg\n\x85e.jpg\x1c\n\n last ".encode())
    assert read_lines(path) == ["a\x0cb.jpg", "c d.jpg", "\x85e.jpg\x1c", "", " last "]
    path.write_bytes(b"caf\xe9.jpg\n")
    assert os.fsencode(read_lines(path, file_names=True)[0]) == b"caf\xe9.jpg"
    assert "0xe9" in problem(read_lines, path)
    path.write_bytes("é.jpg\r\nb.jpg".encode("utf-16"))
    assert read_lines(path, file_names=True) == ["é.jpg", "b.jpg"]
    path.write_bytes(b"\xef\xbb\xbfa.jpg\n")
    assert read_lines(path, file_names=True) == ["a.jpg"]
    path.write_bytes(b"a\0b")
    assert "NUL" in problem(read_lines, path, file_names=True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ('{"a": ', "line 1"),
        ("[1]", "an object is expected, found a list"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        ("[" * 100000, "nested"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("null", "found NoneType"),
    ],
)
def test_damaged_json_is_one_message(tmp_path, text, what):
    path = tmp_path / "config.json"
    path.write_text(text)
    found = problem(read_json, path)
    assert found.startswith(str(path))
    assert what in found


def test_json_with_a_mark_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"é": [1]}).encode())
    assert read_json(path) == {"é": [1]}
    path.write_text("[1]")
    assert read_json(path, list) == [1]


# braces


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("a.tar", 1), ("{00..11}.tar", 12), ("{a,b}/{0..3}.tar", 8), ("{a,{b,c}}d", 3), ("{0..9..2}", 5), ("{}", 1), ("{x}.tar", 1)],
)
def test_braces_are_expanded(pattern, count):
    assert len(expand_braces(pattern)) == count


@pytest.mark.parametrize("pattern", ["{0..}{.tar", "{00000..00099.tar", "a}.tar", "{a,b"])
def test_braces_that_do_not_match_are_refused(pattern):
    assert "braces do not match" in problem(expand_braces, pattern, "data.train.path")


@pytest.mark.parametrize(
    "pattern", ["{0..999999999}.tar", "{a,b}" * 40, "{0..9}" * 7, "{" + "0" * 25 + ".." + "9" * 25 + "}", "{a,b}" * 600]
)
def test_braces_are_counted_before_they_are_expanded(pattern):
    assert f"{MOST_EXPANDED:,}" in problem(expand_braces, pattern, "data.train.path")


def test_a_small_file_is_read_in_little_memory_whatever_the_bound_is(tmp_path):
    """Of a bound of 4 GiB, as annotation files have, no buffer is allocated."""
    (tmp_path / "a.json").write_text("{}")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom amradio.files import read_json\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\nprint(read_json(Path(sys.argv[1]), dict, 4 << 30))"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.json")], capture_output=True, text=True)
    assert ended.stdout == "{}\n", ended.stderr[-500:]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a file of the system whose size is stated as 0")
def test_a_file_of_the_system_is_read_whole():
    assert b"VmRSS" in read_bytes(Path("/proc/self/status"))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota on this disk is used up"),
        (OSError(errno.EACCES, "Permission denied"), "you may not write there: change its permissions"),
        (OSError(errno.EPERM, "Operation not permitted"), "you may not write there"),
        (OSError(errno.EROFS, "Read-only file system"), "mounted read-only: give a folder on another one"),
        (OSError(errno.ENOENT, "No such file or directory"), "a folder of this path is not there"),
        (OSError(errno.ENOTDIR, "Not a directory"), "a part of this path is a file"),
        (OSError(errno.EISDIR, "Is a directory"), "a folder is in the place of a file"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "give a shorter path"),
        (OSError(errno.EMFILE, "Too many open files"), "look at this path and its disk"),
        (OSError("odd"), r"cannot write \(odd\); look at this path"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), r"\(No space left on device\); the disk is full"),
        (SafetensorError("Error while serializing: Permission denied (os error 13)"), "you may not write there"),
        (RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed"), "the disk is full: free some space"),
    ],
)
def test_an_error_in_writing_says_what_to_do_about_it(error, hint, tmp_path):
    with pytest.raises(UserError, match=hint) as caught, disk_errors(tmp_path):
        raise error
    assert str(caught.value).startswith(f"{tmp_path}: cannot write (")
    assert ("free some space" in str(caught.value)) == ("free some space" in hint or "disk is full" in hint)


def test_errors_in_writing_as_the_system_raises_them(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, hint in (
        (tmp_path / "nowhere" / "a", "a folder of this path is not there"),
        (tmp_path / "file" / "a", "a part of this path is a file"),
        (tmp_path / "folder", "a folder is in the place of a file"),
        (tmp_path / ("a" * 300), "give a shorter path"),
    ):
        with pytest.raises(UserError, match=hint), disk_errors(path):
            path.write_text("x")
