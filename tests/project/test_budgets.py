"""The code keeps its budgets and its promises: sizes, layers, and what is never called."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "amradio"
FILES = sorted(SOURCE.rglob("*.py"))
LINES, FUNCTION_LINES, ARGUMENTS, LOOP_LINES, CLASS_LINES, ROOM_SHARE = 400, 60, 7, 80, 200, 0.15


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


@pytest.mark.slow
def test_there_is_code_to_look_at():
    assert len(FILES) > 30
    assert sum(1 for path in FILES for _ in functions(path)) > 200


def test_files_are_short():
    assert not {str(path.relative_to(SOURCE)): n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > LINES}


def test_no_room_is_more_than_a_share_of_the_house():
    lines: dict[str, int] = {}
    for path in FILES:
        room = path.relative_to(SOURCE).parts[0]
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    total = sum(lines.values())
    assert len(lines) > 20
    assert not {room: f"{count / total:.1%}" for room, count in lines.items() if count > ROOM_SHARE * total}


def test_classes_are_short():
    found = {}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and length(node) > CLASS_LINES:
                found[f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"] = length(node)
    assert not found


@pytest.mark.slow
def test_functions_are_short():
    assert not {name: length(node) for path in FILES for name, node in functions(path) if length(node) > FUNCTION_LINES}


@pytest.mark.slow
def test_functions_take_few_arguments():
    """`self` and `cls` do not count."""
    found = {}
    for path in FILES:
        for name, node in functions(path):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([argument for argument in names if argument not in ("self", "cls")])
            if count > ARGUMENTS:
                found[name] = count
    assert not found


def test_the_training_loop_fits_on_a_page():
    parts = {("engine", "loop.py"): ("run", "_run_hooks"), ("training", "trainer.py"): ("run", "_take_step")}
    loop = []
    for path, names in parts.items():
        nodes = [node for _, node in functions(SOURCE.joinpath(*path)) if node.name in names and node.col_offset]
        assert {node.name for node in nodes} == set(names)
        loop += nodes
    assert sum(map(length, loop)) <= LOOP_LINES


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.slow
def test_nothing_runs_code_from_a_file():
    found = []
    for path in FILES:
        for name, node in calls(path):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            where = f"{path.relative_to(SOURCE)}:{node.lineno} {name}"
            if name in ("eval", "exec", "compile", "__import__", "os.system", "pickle.load", "pickle.loads", "yaml.unsafe_load"):
                found.append(where)
            if name == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(None))) != "True":
                found.append(f"{where} without weights_only=True")
            if name.startswith("yaml.") or (name == "YAML" and ast.unparse(keywords.get("typ", ast.Constant(None))) != "'safe'"):
                found.append(f"{where} without a safe loader")
            if "trust_remote_code" in keywords and ast.unparse(keywords["trust_remote_code"]) != "False":
                found.append(f"{where} with trust_remote_code")
            if any(isinstance(value, ast.Constant) and value.value is True for key, value in keywords.items() if key == "shell"):
                found.append(f"{where} with a shell")
    assert not found


def test_images_are_loaded_by_one_reader():
    """Workers that read images are forked safely, guarded and ended in one place; bytes become [0, 1] in one place."""
    loaders, conversions, items = [], [], []
    for path in FILES:
        file = str(path.relative_to(SOURCE))
        for node in nodes(path):
            name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            loaders += [file] if name in ("DataLoader", "Pool", "ProcessPoolExecutor") else []
            items += [file] if name == "load_items" else []
            divides = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and ast.unparse(node.right) in ("255", "255.0")
            conversions += [file] if divides or (name in ("div", "div_") and ast.unparse(node).endswith("(255)")) else []
    assert loaders == ["data/loading_processes.py"]
    assert conversions == ["images.py"]
    assert set(items) == {"data/loading_processes.py", "data/loader.py"}, "others take read_each or load_images"


def test_the_engine_knows_no_metric_of_the_method():
    from amradio.distillation.metrics import HEADLINE

    for path in sorted((SOURCE / "engine").glob("*.py")):
        words = set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
        assert not words & {HEADLINE, "standardized_cosine", "summary", "spatial"}, path.name


@pytest.mark.slow
def test_no_mutable_defaults_and_no_swallowing_keywords():
    found = []
    for path in FILES:
        for name, node in functions(path):
            defaults = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]
            if any(isinstance(default, (ast.List, ast.Dict, ast.Set)) for default in defaults):
                found.append(f"{name}: a mutable default")
            used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if node.args.kwarg and node.args.kwarg.arg not in used:
                found.append(f"{name}: **{node.args.kwarg.arg} swallows")
    assert not found


@pytest.mark.slow
def test_no_bare_except_and_no_silent_one():
    found = []
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler):
                silent = all(isinstance(part, ast.Pass) for part in node.body)
                if node.type is None or (silent and ast.unparse(node.type) in ("Exception", "BaseException")):
                    found.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("word", ["feat", "feats", "utils", "misc", "args"])
def test_words_that_are_not_ours(word):
    named = [str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*") if word in re.split(r"[_.]", path.name)]
    used = []
    for path in FILES:
        for node in nodes(path):
            name = getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "name", None)
            ours = isinstance(node, (ast.arg, ast.FunctionDef, ast.ClassDef)) or isinstance(getattr(node, "ctx", None), ast.Store)
            if ours and word in str(name).lower().split("_"):
                used.append(f"{path.relative_to(SOURCE)}:{node.lineno} {name}")
    assert not named + used


NOUNS_INSTEAD = {"found", "own", "each", "place", "begun"}


def test_variables_are_nouns():
    """A name such as `found` is features, a path or a message alike."""
    vague = []
    for path in FILES:
        for node in nodes(path):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
            if name in NOUNS_INSTEAD:
                vague.append(f"{path.relative_to(SOURCE)}: {name}")
    assert not vague


def test_docstrings_say_what_this_one_does():
    """In the code, and in the examples of extending.md, which people copy."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.S)
    assert len(examples) > 3
    sources = [(str(path.relative_to(SOURCE)), path.read_text(encoding="utf-8")) for path in FILES]
    vague = []
    for file, text in [*sources, *(("extending.md", example) for example in examples)]:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and re.search(r"^See |see the base", ast.get_docstring(node) or ""):
                vague.append(f"{file}:{node.lineno} {node.name}")
    assert not vague


@pytest.mark.slow
def test_rooms_import_only_downwards():
    """The contract of pyproject.toml, and that it knows every room."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    layers = (ROOT / "pyproject.toml").read_text()
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}
    assert {room for room in rooms if f"amradio.{room}" not in layers} == set()
