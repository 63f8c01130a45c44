"""The grammar of the command line: what does not fit is answered with how to write it; listings fit a narrow terminal."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import amradio
from amradio import console
from amradio.__main__ import main
from amradio.commands import tables
from amradio.commands.embed_options import chosen_options
from amradio.commands.grammar import FAMILIAR, parse
from amradio.commands.next_step import suggest
from amradio.commands.parser import parser
from amradio.embedding import EmbedSettings
from amradio.engine.log import Log
from amradio.errors import UserError
from amradio.problems import FLAGS, SYNONYMS, _keys, key_of_flag
from amradio.recipe import Recipe
from amradio.recipes import shipped
from amradio.students import STUDENTS
from amradio.students import catalogue as students
from amradio.teachers import TEACHERS
from amradio.teachers import catalogue as teachers
from amradio.yaml12 import parse_yaml

VERBS = parser()[1]


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed on stderr; the command line has to end with 2."""
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train x.yaml", "error: there is no command 'train'; did you mean 'distill'?"),
        ("distil x.yaml", "error: there is no command 'distil'; did you mean 'distill'?"),
        ("--debug teacher", "error: there is no command 'teacher'; did you mean 'teachers'?"),
        ("detect trian a.yaml", "error: there is no 'trian'; did you mean 'train'?"),
        ("evaluate runs/x --suite papre", "error: argument --suite: there is no 'papre'; did you mean 'paper'?"),
        ("completion bassh", "error: there is no 'bassh'; did you mean 'bash'?"),
        ("trian x.yaml", "error: there is no command 'trian'; did you mean 'distill'?"),
        ("versoin", "error: there is no command 'versoin'; there is: compare, "),
        ("--versoin", "error: there is no option '--versoin'; did you mean '--version'?"),
        ("embed m images --ot f.parquet", "error: there is no option '--ot'; did you mean '--out'?\n"),
        ("export m fromat=onnx out=x", "error: there is no option '--fromat'; did you mean '--format'?\n"),
        ("show m a.jpg ot=shown", "error: there is no option '--ot'; did you mean '--out'?\n"),
        ("evaluate", "error: missing: PATH\nexample: amradio evaluate "),
        ("demo", "error: missing: PATH\n"),
        ("detect", "error: missing: train, RECIPE|key=value\n"),
        ("vlm", "error: missing: train|export, RECIPE|key=value\n"),
        ("xyzzy", "error: there is no command 'xyzzy'; there is: compare, completion, demo, detect, distill, doctor, embed, evaluate, "),
        ("distill a.yaml --dryrun", "error: there is no option '--dryrun'; did you mean '--dry-run'?"),
        ("distill a.yaml --steps 5", "error: there is no option '--steps'; settings are written without dashes: stages.0.steps=5"),
        ("distill starter --lr 3", "settings are written without dashes: optimizer.learning_rate=3\n"),
        ("distill starter --batch-size=64", "dashes: stages.0.partitions.0.batch_size=64\n"),
        ("distill starter --epochs 10", ": stages.0.steps=N, where a step is an update with one batch; runs are not counted in epochs"),
        ("distill starter --workers 4", "dashes: data.num_workers=4\n"),
        ("distill starter --output-dir runs/x", "dashes: out=runs/x\n"),
        ("distill starter --data-path photos", "dashes: data.train.path=photos\n"),
        ("quickstart --seed 3", "dashes: seed=3\n"),
        ("distill starter --frobnicate 3", "dashes: frobnicate=3\n"),
        ("distill a.yaml --out", "error: --out: expected one value; write it as out=VALUE"),
        ("evaluate runs/x --image-size 64", "error: there is no option '--image-size'; settings are written without dashes: image_size=64"),
        ("embed m images --out f.parquet --sptial full", "error: there is no option '--sptial'; did you mean '--spatial'?"),
        ("embed m images --out f.parquet head=clip", "error: there is no option '--head'; did you mean '--heads'?\n"),
        ("embed m images --out f.parquet frob=clip", "error: 'frob=clip' does not belong here; see amradio embed --help"),
        ("students json=true", "error: 'json=true' does not belong here; write it as --json\n"),
        ("distill", "error: missing: RECIPE|key=value\nexample: amradio distill starter data.train.path=photos"),
        ("export m", "error: missing: --format, --out\nexample: amradio export runs/first --format onnx --out student.onnx"),
        ("distill a.yaml --steps 5 --dryrun", "stages.0.steps=5; there is no option '--dryrun'; did you mean '--dry-run'?"),
        ("students foo", "error: 'foo' does not belong here; see amradio students --help"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_answered_with_how_to_write_it(words, message, capsys):
    printed = refused(words, capsys)
    assert message in printed
    meant = re.search("there is no command .*; did you mean '(.*)'", printed)
    verb = meant[1] if meant else next((word for word in words.split() if word in VERBS), "[-h] ")
    assert f"usage: amradio {verb}".rstrip() in printed  # the usage of the verb, where there is one
    assert "Traceback" not in printed


def test_the_flags_of_other_trainers_lead_to_keys_that_are_there():
    keys = set(_keys(Recipe)) | {"data.train.path"}  # `path` is of the source `folder`, the others have other keys
    assert set(FLAGS) <= keys
    for flags in (*FLAGS.values(), *SYNONYMS.values()):
        for flag in flags:
            found = key_of_flag(Recipe, f"--{flag.replace('_', '-')}")
            assert found is None or found in keys
    assert {key_of_flag(Recipe, flag) for flag in ("--lr", "--base-lr", "--learning-rate")} == {"optimizer.learning_rate"}


def test_familiar_verbs_lead_to_verbs_that_are_there():
    assert set(FAMILIAR.values()) <= set(VERBS)
    assert not set(FAMILIAR) & set(VERBS)


@pytest.mark.parametrize("words", [["--debug", "distill", "no.yaml"], ["distill", "--debug", "no.yaml"], ["distill", "no.yaml", "--debug"]])
def test_debug_may_stand_anywhere(words):
    with pytest.raises(UserError, match=r"no\.yaml"):
        main(words)


def test_words_may_stand_behind_options():
    options = parse(["distill", "a.yaml", "--dry-run", "out=x"], "")
    assert options.words == ["a.yaml", "out=x"]
    assert options.dry_run
    assert parse(["evaluate", "runs/x", "--json", "f.json", "image_size=64"], "").words == ["image_size=64"]


@pytest.mark.parametrize("written", [["--out", "x=1"], ["--out=x=1"], ["out=x=1"]])
@pytest.mark.parametrize("verb", ["distill a.yaml", "quickstart", "embed m images", "export m --format onnx"])
def test_a_key_has_three_spellings_for_every_verb(verb, written):
    options = parse([*verb.split(), *written], "")
    assert (options.words[-1] if hasattr(options, "words") else f"out={options.out}") == "out=x=1"


def test_dotted_options_are_words_and_json_may_stand_anywhere():
    words = ["distill", "--optimizer.learning_rate=1e-3", "a.yaml", "--stages.0.steps", "5", "--dry-run"]
    assert parse(words, "").words == ["optimizer.learning_rate=1e-3", "a.yaml", "stages.0.steps=5"]
    assert parse(["--json", "students"], "").json
    assert parse(["show", "m", "a.jpg", "out=s", "--click", "-5", "3"], "").click == [[-5.0, 3.0]]
    assert parse(["embed", "m", "images", "out=f.parquet", "image_size=64"], "").image_size == "64"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("evaluate m --json", "-"),
        ("--json evaluate m", "-"),
        ("evaluate --json m", "-"),
        ("evaluate m --json real_evaluation", "-"),
        ("evaluate --json a.json m", "a.json"),
        ("evaluate m --json=a.txt", "a.txt"),
        ("evaluate m json=a.json", "a.json"),
        ("evaluate m --json /dev/stdout", "/dev/stdout"),
        ("evaluate m", None),
    ],
)
def test_the_json_of_an_evaluation_goes_into_a_file_that_is_named_and_else_to_stdout(words, file):
    options = parse(words.split(), "")
    assert (options.path, options.json) == ("m", file)
    assert options.words == [word for word in words.split() if word == "real_evaluation"]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_as_a_verb_is_the_help_of_a_verb(verb, capsys):
    printed = []
    for words in (["help", verb], [verb, "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main([word for word in words if word])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].startswith(f"usage: amradio {verb or '[-h]'}")


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("verb", [None, *VERBS])
def test_the_help_fits_the_terminal(verb, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit, match="0"):
        main(["--help"] if verb is None else [verb, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > width] == []


def test_errors_and_lines_of_progress_are_folded_on_a_terminal_and_whole_in_a_file(monkeypatch, capsys):
    words = ["distill", "starter", "teachers.dino.wieght=2", "optimizer.lr=1e-4"]
    assert main(words) == 2
    whole = capsys.readouterr().err
    assert max(map(len, whole.splitlines())) > 90
    monkeypatch.setenv("COLUMNS", "60")
    assert main(words) == 2
    assert capsys.readouterr().err == whole, "readline sets COLUMNS in processes that have no terminal"
    monkeypatch.setattr(console, "is_terminal", lambda _: True)
    assert main(words) == 2
    folded = capsys.readouterr().err
    assert max(map(len, folded.splitlines())) <= 60
    assert folded.split() == whole.split()
    log = Log(aloud=True)
    log.say_parts(("step 7/9", "loss 0.1234", "left 0:10", "clip 0.763/0.787", "dino 0.763/0.787", "41 img/s"))
    assert capsys.readouterr().out == "step 7/9  loss 0.1234  left 0:10  clip 0.763/0.787\n"
    assert log._early == ["step 7/9  loss 0.1234  left 0:10  clip 0.763/0.787  dino 0.763/0.787  41 img/s"], "train.log has all"


@pytest.mark.slow
def test_quiet_prints_results_warnings_and_errors(recipe_file, tmp_path, capsys):
    assert main(["distill", str(recipe_file), "--quiet", "stages.0.steps=1", "evaluate.every=null", f"--out={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr()
    assert [line for line in (printed.out + printed.err).splitlines() if not line.startswith("warning: ")] == []
    assert "warning: statistics from few images" in printed.out
    assert "step 1/1" in (tmp_path / "run" / "train.log").read_text(), "the file has all lines"
    assert main(["--quiet", "evaluate", str(tmp_path / "nowhere")]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["students", "--quiet"]) == 0
    assert "eradio" in capsys.readouterr().out
    console.note("one line")
    assert capsys.readouterr().err == "one line\n", "the next command is not quiet"


def valid(schema: dict, value: object) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.slow
def test_the_schemas_take_what_is_shipped_and_refuse_a_wrong_key(capsys):
    for of in ("recipe", "evaluation"):
        assert main(["schema", of]) == 0
        schema = json.loads(capsys.readouterr().out)
        jsonschema.Draft202012Validator.check_schema(schema)
        files = [entry for entry in shipped() if entry.kind == of]
        assert files
        for entry in files:
            content = parse_yaml(entry.path.read_text(), entry.name)
            content |= {"out": "x"} if of == "recipe" else {}
            assert valid(schema, content), entry.name
            assert not valid(schema, content | {"oout": "x"})


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_completes_verbs_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)
    assert "--dry-run" in printed or "dry-run" in printed


def test_the_version_is_in_one_place(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"amradio {amradio.__version__}\n"
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in text
    assert '\nversion = "' not in text


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    printed = capsys.readouterr().out
    example = shlex.split(printed.split("example: amradio ")[1].replace("\\\n", " "))
    assert example[0] == verb
    parse(example, "")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", {}),
        ("--heads clip,sam --batch-size 8", {"heads": ["clip", "sam"], "batch_size": 8}),
        ("--image-size 224 --device 0", {"image_size": 224, "device": "0"}),
        ("--image-size own --spatial full --num-workers 0", {"image_size": "own", "spatial": "full", "num_workers": 0}),
        ("--dtype float32 --precision auto", {"dtype": "float32", "precision": "auto"}),
    ],
)
def test_options_of_embed_become_settings(words, options):
    found = chosen_options(parse(["embed", "m", "photos", "--out", "f.parquet", *words.split()], ""))
    assert found == options
    assert EmbedSettings.model_validate(found)


def test_options_of_embed_are_made_from_its_settings(monkeypatch):
    printed = " ".join(VERBS["embed"].format_help().split())
    for name, field in EmbedSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in printed
        assert " ".join(field.description.split())[1:].rstrip(".") in printed
        assert field.default in (None, ()) or f"(default: {field.default})" in printed

    class More(EmbedSettings):
        layers: int = 3
        """Blocks."""

    monkeypatch.setattr("amradio.commands.embed_options.EmbedSettings", More)
    words = ["embed", "m", "photos", "--out", "f.parquet", "--layers", "5"]
    assert chosen_options(parse(words, "")) == {"layers": 5}


# listings


@pytest.mark.parametrize("columns", [None, 60, 200])
def test_no_line_of_a_listing_is_longer_than_the_page_and_no_name_is_folded(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns or ""))  # set and empty is as not set: 80
    for verb, names in (("teachers", [known.model for known in teachers()]), ("students", [row.size for row in students()])):
        assert main([verb]) == 0
        lines = capsys.readouterr().out.splitlines()
        words = {word for line in lines for word in line.split()}
        assert {part for name in names for part in name.split()} <= words
        assert max(map(len, lines)) <= (columns or 80)
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= (columns or 80)
    for entry in shipped():
        assert f"\n{entry.name}\n" in printed
        joined = re.sub(r" \\\n +", " ", printed)  # as a shell reads them
        assert all(f"    $ {command}\n" in joined for command in entry.command.splitlines())


def test_the_commands_of_the_recipes_are_commands_and_nothing_else():
    for entry in shipped():
        for command in entry.command.splitlines():
            words = shlex.split(command)
            words = words[words.index("amradio") + 1 :]
            options = parse(words, "")
            assert options.verb in ("distill", "detect", "vlm", "evaluate", "quickstart")
            names = {entry.name} | ({recipe.name for recipe in shipped() if recipe.kind == "recipe"} if entry.kind == "part" else set())
            assert all("=" in word or word in names for word in options.words), command


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("distill a.yaml --dry-run", "the same command without --dry-run"),
        ("distill a.yaml", ""),  # the log ends with it
        ("evaluate runs/x", "amradio show runs/x IMAGES --out shown"),
        ("embed m photos --out f.parquet", "amradio show m IMAGE --out shown --neighbours f.parquet photos"),
        ("show m a.jpg --out a/b/", "open a/b/index.html in a browser"),
        ("report runs/x", "open report.html in a browser"),
        ("compare runs/x runs/y", "amradio report runs/x runs/y --out comparison.html"),
        ("compare runs/x runs/y --json", ""),
        ("evaluate runs/x --json f.json", ""),
        ("doctor", "amradio quickstart"),
        ("teachers", ""),
    ],
)
def test_a_command_ends_with_what_to_do_next(words, text, capsys):
    options = parse(words.split(), "")
    suggest(options)
    printed = capsys.readouterr()
    assert printed.err == (f"Next: {text}\n" if text else "")
    assert printed.out == "", "results alone are on stdout"
    if text.startswith("amradio "):
        assert parse(text.split()[1:], "").verb


def test_a_command_that_succeeds_says_what_is_next_and_one_that_fails_does_not(capsys):
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "amradio doctor: starting\nNext: amradio quickstart\n"
    assert main(["compare", "runs/nowhere"]) == 2
    assert "Next" not in capsys.readouterr().err


def test_names_of_shipped_models_and_teachers_are_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "embeded/quickstart", "embedded/quikstart"):
        with pytest.raises(UserError, match="did you mean 'embedded/quickstart'"):
            amradio.load(name)
    with pytest.raises(UserError) as caught:
        amradio.load("nothing-like-it")
    assert "did you mean" not in str(caught.value)
    assert main(["distill", "starter", "data.train.path=x", "out=y", "teachers.dinoo.weight=1", "teachers.zzz.weight=1"]) == 2
    printed = capsys.readouterr().err
    assert "error: teachers.dinoo: did you mean 'dino'? If it is a new one: 'type' is missing; there is: clip, " in printed
    assert "error: teachers.zzz: 'type' is missing; there is: clip, " in printed


def test_the_doctor_as_json(capsys):
    assert main(["--json", "doctor"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"CPU", "disk", "hub cache"} <= content["machine"].keys()
    assert content["libraries"]["torch"].count(".") >= 2
    assert isinstance(content["teachers"], list)


def test_listings_as_json(capsys):
    for verb, count in (("teachers", len(teachers())), ("students", len(students())), ("recipes", len(shipped()))):
        assert main([verb, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert len(rows) == count
        assert all(isinstance(row, dict) for row in rows)


def test_listings_name_every_type(capsys):
    for verb, choices in (("teachers", TEACHERS), ("students", STUDENTS)):
        main([verb])
        printed = capsys.readouterr().out
        assert all(settings.model_fields["type"].default in printed for settings in choices)


@pytest.mark.parametrize(
    ("name", "schema"),
    [("starter", "recipe"), ("smoke", "recipe"), ("detection_short", "detection"), ("vlm_llava", "vlm"), ("scenes", "evaluation")],
)
def test_a_recipe_is_printed_as_it_is_below_a_line_for_editors(name, schema, capsys):
    assert main(["recipes", name]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.startswith(f"# yaml-language-server: $schema={schema}.schema.json  (")
    assert rest == next(entry.path for entry in shipped() if entry.name == name).read_text()


def test_a_recipe_that_is_not_there(capsys):
    assert main(["recipes", "strater"]) == 2
    assert capsys.readouterr().err == "error: there is no recipe 'strater'; did you mean 'starter'?\n"


def test_export_names_what_a_reader_reads(capsys, tmp_path):
    assert main(["export", "runs/x", "--format", "tensorrt", "--out", str(tmp_path / "y")]) == 2
    printed = capsys.readouterr().err
    assert "error: format: there is no 'tensorrt'; TensorRT reads 'onnx'; there is: amradio, " in printed
    assert main(["export", "runs/x", "--format", "onx", "--out", str(tmp_path / "y")]) == 2
    assert "did you mean 'onnx'?; there is: amradio" in capsys.readouterr().err


def test_a_machine_without_the_module_resource(monkeypatch):
    """Windows."""
    import torch

    from amradio.engine.log import memory_in_use

    assert memory_in_use(torch.device("cpu")) > 0
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory_in_use(torch.device("cpu")) != memory_in_use(torch.device("cpu"))  # not a number


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["teachers"], ["students"], ["recipes"], ["trian"], ["distill", "--help"]])
def test_no_torch_for_help_listings_and_mistakes(words, tmp_path):
    program = (
        "import sys\nfrom amradio.__main__ import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', *(name for name in ('torch', 'transformers', 'timm', 'torchvision', 'open_clip') if name in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.rpartition("HEAVY")[2].split() == []


def test_words_without_a_recipe_lead_to_the_shipped_ones(capsys):
    assert main(["distill", "seed=3"]) == 2
    printed = capsys.readouterr().err
    assert "error: data: this key is required and missing" in printed
    assert "begin with one that comes with amradio, e.g. starter (`amradio recipes` lists them)" in printed
    assert main(["evaluate", "runs/x", "evaluations.k-NN.k=3"]) == 2
    assert "to change the built-in evaluations, begin with their name: scenes evaluations.k-NN.k=3" in capsys.readouterr().err
    mistaken = "evaluations.mine={type: depth, train: {type: scenes}, test: {type: scenes, limit: 0}}"
    assert main(["evaluate", "runs/x", mistaken]) == 2
    errors = capsys.readouterr().err
    assert "evaluations.mine.test.limit: should be greater than 0, found 0" in errors
    assert "built-in evaluations" not in errors, "beginning with their name would not help"


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["distill", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path}: this folder has no config.yaml, so it is no run; give a run folder, ")
    assert printed.endswith(f"to train on images in it: data.train.path={tmp_path}\n")


def test_a_table_that_is_too_wide_folds_no_name(monkeypatch, capsys):
    name = "facebook/dinov2-with-registers-large"
    row = ("dino", name, "304.0", "any x14", "Apache-2.0, of the weights", "1,024")
    for columns in (60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        tables.print_table("Teachers", ("name", "source", "M", "input px", "licence", "spatial"), [row, ("clip", "x", "-", "-", "y", "1")])
        printed = capsys.readouterr().out
        assert all(cell in " ".join(printed.split()) for cell in row)
        assert name in printed
        assert max(len(line.rstrip()) for line in printed.splitlines()) <= columns
    assert "    licence: Apache-2.0, of the weights\n" not in printed
    monkeypatch.delenv("COLUMNS")
    tables.print_table("Teachers", ("name", "source", "M", "input px", "licence", "spatial"), [row])
    printed = capsys.readouterr().out
    assert "dino\n" in printed  # on a page of 80
    assert "    licence: Apache-2.0, of the weights\n" in printed
    tables.print_table("Data", ("key", "found"), [("data.train", f"24 images in /{'photos/' * 12}")])
    assert capsys.readouterr().out.split() == f"Data data.train: 24 images in /{'photos/' * 12}".split()


def test_brackets_in_a_table_are_no_styles(capsys):
    tables.print_table("[a]", ("[b]", "if missing"), [("trl", "pip install 'amradio[vlm]'"), ("[bold]", "[/]")])
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in ("[a]", "[b]", "pip install 'amradio[vlm]'", "[bold]", "[/]"))


def test_a_table_of_numbers_that_is_too_wide_is_split(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    headings = ["what", *(f"{size} px" for size in range(100, 1700, 100))]
    tables.print_table("Agreement", headings, [("student/clip", *(f"0.{number:03d}" for number in range(16)))])
    printed = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    assert [word for word in printed.split() if word.startswith("0.")] == [f"0.{number:03d}" for number in range(16)]
    assert printed.count("student/clip") == 3


def test_the_doctor_fits_a_page(capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    assert "processes\n    found: 1\n" in printed


def test_one_recipe_as_json_is_its_content_and_what_the_listing_has(capsys):
    assert main(["recipes", "starter", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["content"]["student"] == parse_yaml(Path(one["path"]).read_text(encoding="utf-8"), "starter")["student"]
    assert main(["recipes", "--json"]) == 0
    (listed,) = (entry for entry in json.loads(capsys.readouterr().out) if entry["name"] == "starter")
    assert listed == {key: value for key, value in one.items() if key != "content"}
