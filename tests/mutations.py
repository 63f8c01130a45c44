"""Recipes that somebody, or something, has damaged: seeded, so that a number stands for a recipe."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from amradio.yaml12 import write_yaml

NUMBERS = (0, 1, 2, 3, 7, 16, -1, 0.0, 0.5, 1.0, -0.5, 1e-8, 1e308, -1e308, float("inf"), float("nan"), 1e3, 65536, 4096)
NUMBERS += (2**31, 2**63, 2**70, 10**400)
TEXTS = ("", " ", "x", "null", "~", "~nosuchuser/x", "a\0b", "\ud800", "\udce9", "/dev/zero", ".", "é" * 200, "n" * 5000, "*", "no", "010")
TEXTS += ("{0..}{.tar", "{0..999999999}.tar", "hf-hub:a/b", "https://example.org/x", "pipe:ls", "vit", "timm", "clip", "scenes", "a.b")
TEXTS += ("%s{}", "\x1b[31m")
OTHERS = (None, True, False, [], {}, [[]], [None], {"type": None}, {"type": "vit"}, {"": 1}, {"a": {"a": {"a": 1}}}, [1, 2, 3])
OTHERS += (list(range(3000)),)
WORDS = ("seed=", "seed=1e1", "a=b", "=", "==", "stages.²=1", "stages.9.steps=1", "stages.0=3", "student={type:vit}", "student={type: vit")
WORDS += ("teachers.keys={type: embedded, name: clip}", "loss.spatial.beta=2", "optimizer.lr=1", "out=~", "student=resnet50", "-", "x.yaml")
WORDS += ("engine.device=cuda:9", "data.train.path=set #2", "teachers.clip=null", "data.val=null", "a." * 60 + "a=1")
WORDS += ("evaluate.suite=nowhere.yaml",)
LINES = ("a: &a [*a]", "<<: *nobody", "<<: {seed: 3}", "seed: 1", "  - x", "\tx: 1", "--- {}", "!!python/object:os.system x", "? [a]\n: b")
LINES += ("'", "{", "]: [", "%")
SNIPPETS = (
    "#",
    ":",
    "- ",
    "*",
    "&a ",
    "!x ",
    "'",
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    "\n",
    " ",
    "\t",
    "|",
    ">",
    "\0",
    "é",
    "\ufeff",
    "0",
    "-",
    "e",
)


class Mutated(NamedTuple):
    """A recipe file and the words behind it."""

    content: bytes
    words: list[str]
    what: str
    """What was done, for messages."""


def recipes(pictures: Path) -> list[dict[str, Any]]:
    """Small whole recipes with everything written out that a mutation may hit. pictures: a folder of images."""
    embedded = {name: {"type": "embedded", "name": name} for name in ("clip", "dino", "sam")}
    scenes = {"type": "scenes", "length": 64, "seed": 3, "image_size": 64}
    loss = {"summary": "cosine", "spatial": {"type": "match", "cosine": 0.9, "smooth_l1": 0.1, "beta": 1.0}, "grid": "larger"}
    common = {
        "loss": loss,
        "normalize": {"batches": 1},
        "engine": {"device": "cpu", "precision": "float32", "threads": 1, "accumulate": 1, "ema": 0.9, "keep": 1, "log_every": 1},
        "optimizer": {"learning_rate": 0.001, "betas": [0.9, 0.99], "epsilon": 1e-8, "clip": 1.0, "weight_decay": 0.02, "warmup_steps": 0},
        "evaluate": {"every": None, "batches": 1},
        "seed": 0,
        "out": "run",
    }
    vit = {"type": "vit", "size": "tiny", "dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "max_image_size": 64, "num_registers": 1}
    eradio = {"type": "eradio", "size": "xxxtiny", "depths": [1, 1, 1, 1], "window_size": 4}
    two = [{"steps": 2, "partitions": [{"image_size": 64, "batch_size": 2, "weight": 1.0}]}]
    parts = [{"image_size": 32, "batch_size": 2, "teachers": ["clip"]}, {"image_size": 64, "batch_size": 2, "view_size": 64}]
    folder = {"type": "folder", "path": str(pictures)}
    mixture = {"type": "mixture", "sources": {"a": scenes, "b": folder}, "weights": {"a": 1.0, "b": 2.0}}
    crops = {"crop_scale": [0.4, 1.0], "crop_ratio": [0.75, 1.3], "flip": 0.5, "num_workers": 0}
    head = {"by_teacher": {"clip": {"summary": {"type": "mlp", "hidden_dim": 16}, "spatial": "linear"}}, "spatial": "attention"}
    knn = {"type": "knn", "database": scenes, "queries": {**scenes, "seed": 4}, "k": [3]}
    suite = {"every": 1, "batches": 1, "suite": {"evaluations": {"knn": knn}}}
    return [
        {"data": {"train": scenes, **crops}, "teachers": embedded, "student": vit, "stages": two, **common},
        {
            "data": {"train": folder, "hold_out": 0.5, **crops},
            "teachers": {"clip": embedded["clip"]},
            "student": eradio,
            "stages": two,
            **common,
        },
        {"data": {"train": mixture, "val": scenes, **crops}, "teachers": embedded, "student": vit, "heads": head}
        | {"stages": [{"steps": 2, "partitions": parts}], **common, "evaluate": suite},
        {"data": {"train": scenes, **crops}, "teachers": {"sam": embedded["sam"]}, "student": {"type": "timm", "model": "test_vit3"}}
        | {"stages": two, **common},
    ]


def mutated(number: int, pictures: Path, seed: int = 0) -> Mutated:
    """Mutation `number` of a seed."""
    draws = random.Random(f"{seed}/{number}")
    recipe = copy.deepcopy(draws.choice(recipes(pictures)))
    kind = draws.random()
    done = []
    if kind < 0.7:
        for _ in range(draws.choice((1, 1, 1, 2, 3))):
            done.append(_change(recipe, draws))
    text = write_yaml(recipe)
    if 0.7 <= kind < 0.9:
        text, what = _damage(text, draws)
        done.append(what)
    content = text.encode("utf-8", errors="surrogateescape")
    words = []
    if kind >= 0.9:
        words = draws.choices(WORDS, k=draws.choice((1, 1, 2)))
        done.append(f"words {words}")
        if draws.random() < 0.3:
            encoding = draws.choice(("utf-16", "latin-1", "utf-8-sig", "utf-16-le"))
            content = ("# größe\n" + text).encode(encoding, errors="replace")
            done.append(f"in {encoding}")
    return Mutated(content, words, "; ".join(done))


def _places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _change(recipe: dict[str, Any], draws: random.Random) -> str:
    """Changes one place of the tree."""
    path = draws.choice(list(_places(recipe)))
    parent: Any = recipe
    for key in path[:-1]:
        parent = parent[key]
    last, old = path[-1], parent[path[-1]]
    kind = draws.random()
    if kind < 0.3 and isinstance(old, (int, float)) and not isinstance(old, bool):
        new = draws.choice((old * 2, old + 1, old - 1, -old, old / 2, old * 10, old * 1000, float(old), int(old)))
    elif kind < 0.8:
        new = draws.choice(draws.choice((NUMBERS, TEXTS, OTHERS)))
    elif kind < 0.86:
        del parent[last]
        return f"{path} away"
    elif kind < 0.92 and isinstance(parent, dict):
        parent[draws.choice((f"{last}s", str(last)[:-1], str(last).upper(), draws.choice(TEXTS)))] = parent.pop(last)
        return f"{path} renamed"
    else:
        place = draws.choice(list(_places(recipe)))
        new = recipe
        for key in place:
            new = new[key]
        new = copy.deepcopy(new)
    parent[last] = new
    return f"{path} = {str(new)[:60]!r}"


def _damage(text: str, draws: random.Random) -> tuple[str, str]:
    """Changes the text itself."""
    lines = text.split("\n")
    place = draws.randrange(len(lines))
    kind = draws.choice(("line", "twice", "swap", "away", "insert", "cut", "delete"))
    if kind == "line":
        lines.insert(place, draws.choice(LINES))
    elif kind == "twice":
        lines.insert(place, lines[draws.randrange(len(lines))])
    elif kind == "swap":
        lines[place], lines[0] = lines[0], lines[place]
    elif kind == "away":
        del lines[place]
    text = "\n".join(lines)
    at = draws.randrange(len(text))
    if kind == "insert":
        text = text[:at] + draws.choice(SNIPPETS) + text[at:]
    elif kind == "cut":
        text = text[:at]
    elif kind == "delete":
        text = text[:at] + text[at + draws.randint(1, 5) :]
    return text, f"text: {kind} at line {place + 1}, character {at}"
