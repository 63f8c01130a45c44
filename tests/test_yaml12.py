"""YAML 1.2: the core schema, what is refused with its line, bounds that hold before anything is expanded, and there and back."""

import random
import time

import pytest

from amradio.errors import UserError
from amradio.words import read_words
from amradio.yaml12 import DEEPEST, MOST_NODES, parse_yaml, plain_value, write_yaml

SCALARS = {
    "010": 10,
    "-0": 0,
    "+7": 7,
    "0o17": 15,
    "0x1F": 31,
    "3e-4": 3e-4,
    "1e3": 1000.0,
    ".5": 0.5,
    "+.5": 0.5,
    "2.": 2.0,
    "1.E+3": 1000.0,
    "-.inf": float("-inf"),
    "null": None,
    "~": None,
    "True": True,
    "FALSE": False,
    **{text: text for text in ("no", "Yes", "on", "OFF", "y", "1:30", "190:20:30", "2024-11-25", "2020-13-45", "1_000", "0b11")},
    **{text: text for text in ("e4", "1.2.3", "0o8", "0xg", ".e5", ".", "=", "nUll", "tRue", "١٢", "1e", "2001-12-14t21:59:43.10-05:00")},
}


def problem(text: str, where: str = "file.yaml") -> str:
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        parse_yaml(text, where)
    assert time.process_time() - start < 5
    (found,) = caught.value.problems
    assert found.startswith(f"{where}: ")
    assert len(found) < 300
    return found


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_are_those_of_the_core_schema(text, value):
    for found in (
        plain_value(text),
        parse_yaml(f"a: {text}\n", "here")["a"],
        parse_yaml(f"[{text}]", "here")[0],
        read_words([f"a={text}"])["a"],
    ):
        assert found == value
        assert type(found) is type(value)
    assert parse_yaml(f"'{text}'", "here") == text
    assert parse_yaml(f'"{text}"', "here") == text
    assert read_words([f"a='{text}'"])["a"] == text


def test_nothing_is_null():
    assert parse_yaml("", "here") is None
    assert parse_yaml("a:\nb: ''\n", "here") == {"a": None, "b": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands in lines 1 and 3"),
        ("x:\n  a: 1\n  'a': 3\n", "lines 2 and 3"),
        ("{a: 1, a: 2}", "the key 'a' stands twice"),
        ("1: a\n0x1: b\n", "the key '1'"),
        ("a: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system"),
        ("a: !!int x", "!!int"),
        ("a: !custom x", "!custom"),
        ("!x a: 1", "!x"),
        ("a: ! x", "the tag !"),
        ("!!set {a, b}", "!!set"),
        ("a: &x [*x]", "contains itself"),
        ("a: &o {b: {c: *o}}", "contains itself"),
        ("a: *nobody", "no anchor &nobody"),
        ("a: " + "9" * 5000, "5,000 characters"),
        ("a: 1." + "9" * 5000, "5,002 characters"),
        ("a: 1\n---\na: 2\n", "line 2: a second document"),
        ("student: {type:timm}", "write 'type: timm'"),
        ("[1, 2\n", "not valid YAML"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: @x", "'@'"),
        ("a: \x01", "special characters"),
        ("? [a, b]\n: 1", "a key is a word or a number"),
        ("<<: 3", "'<<' merges a mapping"),
        ("<<: [{a: 1}, 3]", "'<<' merges a mapping"),
        ('a: "\\q"', "escape character"),
        ("a:\n\tb: 1", "cannot start any token"),
        ("[" * 2000 + "]" * 2000, f"more than {DEEPEST} levels"),
        ("{a: " * 900 + "1" + "}" * 900, f"more than {DEEPEST} levels"),
        ("[" * 100000, f"more than {DEEPEST} levels"),
        ("".join(f"b{i}: &b{i} [*b{i - 1}]\n" if i else "b0: &b0 [1]\n" for i in range(100)), f"more than {DEEPEST} levels"),
    ],
)
def test_what_is_refused_is_named_with_its_place(text, what):
    assert what in problem(text)


def bombs() -> dict[str, str]:
    """A few hundred bytes each that stand for a thousand million values."""
    lists = "".join(f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9) if i else 'x,x,x,x,x,x,x,x,x'}]\n" for i in range(10))
    maps = "".join(f"b{i}: &b{i} {{{','.join(f'k{j}: *b{i - 1}' for j in range(9)) if i else 'k: 1'}}}\n" for i in range(10))
    merges = "".join(f"b{i}: &b{i} {{<<: [{','.join([f'*b{i - 1}'] * 9)}]}}\n" if i else "b0: &b0 {a: 1, b: 2}\n" for i in range(10))
    return {"lists": lists, "maps": maps, "merges": merges, "in one line": "[" + lists.replace("\n", ", ").replace(": &", ": &") + "]"}


@pytest.mark.parametrize("kind", bombs())
def test_anchors_are_counted_before_they_are_expanded(kind):
    assert f"more than {MOST_NODES:,} values" in problem(bombs()[kind])
    with pytest.raises(UserError) as caught:
        read_words([f"heads=[{', '.join(bombs()[kind].splitlines())}]"])
    assert len(str(caught.value)) < 500


def test_anchors_and_merge_keys_are_taken():
    text = "b: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}\nd: {z: 0, <<: [*b, {z: 1, x: 9, w: 4}]}\ne: {'<<': 1}\nf: &q 3\ng: *q\n"
    assert parse_yaml(text, "here") == {
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
        "d": {"x": 1, "y": 2, "w": 4, "z": 0},
        "e": {"<<": 1},
        "f": 3,
        "g": 3,
    }


def test_long_honest_files_are_read_quickly():
    text = "".join(f"name{n}: {{type: folder, path: /data/{n}}}\n" for n in range(200))
    start = time.process_time()
    assert len(parse_yaml(text, "here")) == 200
    assert time.process_time() - start < 5


# there and back

TEXTS = (
    "no",
    "010",
    "1:30",
    "2024-11-25",
    "set #2",
    "~",
    "",
    "a: b",
    "- x",
    "\ud800",
    "\udce9x",
    "é",
    "日本",
    "\0",
    "\x85",
    " ",
    "\t",
    "\n",
)
TEXTS += (
    "a\nb\n",
    " a",
    "a ",
    "'",
    '"',
    "\\",
    "{",
    "[1]",
    "*a",
    "&a",
    "!x",
    "%y",
    "@z",
    "`",
    "|",
    ">",
    "#",
    "?",
    "=",
    "<<",
    "1_000",
    "0x1",
)
TEXTS += (
    "null",
    "True",
    "y",
    "N",
    "...",
    "---",
    "--- a",
    ".5",
    ".",
    ".e5",
    "1e3",
    "\u2028",
    "x" * 300,
    "w " * 200,
    "\ufeff",
    "-",
    "a:",
    "🙂",
)
TEXTS += (
    "1.",
    "0o7",
    "+1",
    ".inf",
    ".nan",
    "-.INF",
    "a,b",
    "a # b",
    "*.tar",
    "{0..3}.tar",
    "/data/{00..99}.tar",
    "~/x",
    "a\r\nb",
    "9" * 500,
)
NUMBERS = (None, True, False, 0, -5, 2**70, 1e-8, 1e300, 1e16, 0.1, 1e3, 123456789.0, float("inf"), float("-inf"), -1.5e-300, 5e-324)


def text(draws: random.Random) -> str:
    if draws.random() < 0.5:
        return draws.choice(TEXTS)
    return "".join(draws.choice("ab01 :#-?{}[],&*!|>'\"%@`~=\n\t\\é.\udce9_/<") for _ in range(draws.randint(0, 12)))


def value(draws: random.Random, depth: int = 0) -> object:
    kind = draws.random()
    if depth < 3 and kind < 0.25:
        return {text(draws): value(draws, depth + 1) for _ in range(draws.randint(0, 4))}
    if depth < 3 and kind < 0.5:
        return [value(draws, depth + 1) for _ in range(draws.randint(0, 4))]
    return text(draws) if kind < 0.8 else draws.choice(NUMBERS)


@pytest.mark.parametrize("single", [*TEXTS, *NUMBERS], ids=repr)
def test_every_value_reads_back(single):
    for found in (single, [single], {"a": single}, {"a": [{"b": single, "c": [single]}]}):
        back = parse_yaml(write_yaml(found), "here")
        assert back == found
        assert repr(back) == repr(found)
    assert parse_yaml(write_yaml({str(single): 1}), "here") == {str(single): 1}


@pytest.mark.slow
def test_random_values_read_back():
    draws = random.Random(0)
    for _ in range(1000):
        found = value(draws)
        assert repr(parse_yaml(write_yaml(found), "here")) == repr(found)


def test_texts_that_other_readers_take_for_something_else_are_quoted():
    """YAML 1.1 readers (PyYAML) read what is written here the same."""
    yaml = pytest.importorskip("yaml")
    for found in ("no", "Yes", "on", "1:30", "2024-11-25", "1_000", "0b11", "010", "=", "<<", "y"):
        assert yaml.safe_load(write_yaml([found])) == [found]
