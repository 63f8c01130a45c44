"""The sdist, and the wheel that is built from it, as a user installs it: into a folder of its own, away from the sources."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRY = """
import sys
import amradio
from amradio.recipes import shipped
from amradio.__main__ import main
assert amradio.__file__.startswith(sys.argv[1]), amradio.__file__
assert len(shipped()) > 5
assert main(["students"]) == 0
assert main(["distill", "quickstart", "--dry-run", "--quiet", "data.num_workers=0"]) == 0
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = tmp_path_factory.mktemp("sdist") / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src"):
        (sources / name).symlink_to(ROOT / name)  # a build writes beside what it reads
    return _built("sdist", sources)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, as pip builds it: what the sdist lacks, the wheel lacks."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    return _built("wheel", sources)


def _built(what: str, sources: Path) -> Path:
    """What setuptools builds of `sources`, without network and without an environment of its own."""
    pytest.importorskip("setuptools")
    build = sources.parent / "build"
    build.mkdir()
    program = f"import setuptools.build_meta as b; print(b.build_{what}({str(build)!r}))"
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(_apart(sources.parent))}
    ended = subprocess.run([sys.executable, "-c", program], cwd=sources, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (file,) = build.iterdir()
    return file


def _apart(folder: Path) -> Path:
    """Settings of setuptools that keep what a build writes out of the sources."""
    file = folder / "setup.cfg"
    file.write_text(f"[build]\nbuild_base = {folder / 'lib'}\n[egg_info]\negg_base = {folder}\n")
    return file


@pytest.mark.slow
def test_an_sdist_has_all_sources_and_is_named_for_the_version(sdist):
    import amradio

    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sdist.name == f"amradio-{amradio.__version__}.tar.gz"
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "src" / "amradio").rglob("*.py")} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "PKG-INFO", "src/amradio/py.typed"} <= names
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.slow
def test_a_wheel_holds_everything_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "amradio").rglob("*.py")}
    assert sources <= names
    assert "amradio/formats/embedded/quickstart/model.safetensors" in names
    assert {"amradio/py.typed", "amradio/recipes/quickstart.yaml", "amradio/teachers/embedded/clip/model.safetensors"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"amradio"}
    assert not [name for name in names if "tests" in name or "__pycache__" in name]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Typing :: Typed" in metadata


@pytest.mark.slow
def test_an_installed_wheel_works_away_from_the_sources(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    libraries = os.pathsep.join([str(tmp_path / "site"), *(path for path in sys.path if path.endswith("-packages"))])
    environment = os.environ | {"PYTHONPATH": libraries}
    ended = subprocess.run(
        [sys.executable, "-S", "-c", TRY, str(tmp_path / "site")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "eradio" in ended.stdout
    assert "teachers:" in ended.stdout


def test_the_image_of_docker_has_extras_and_files_that_exist():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'"/src\[(.*)\]"', dockerfile)
    assert {"train", "vlm"} <= set(extras.split(",")) <= project["optional-dependencies"].keys()
    copied = [name for line in re.findall("^COPY (.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"], "src"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_of_docker_has_one_cuda_and_a_home_for_any_user():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (base,) = (line.removeprefix("FROM ") for line in lines if line.startswith("FROM "))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (runtime,) = re.findall(r"^nvidia-cuda-runtime==(\d+)\.", pinned, re.MULTILINE)
    stated = re.findall(r"cuda:(\d+)", base)
    assert stated in ([], [runtime]), f"torch's wheels bring CUDA {runtime}"
    settings = dict(word.split("=", 1) for line in lines if line.startswith("ENV ") for word in line.split()[1:])
    (folder,) = (line.removeprefix("WORKDIR ") for line in lines if line.startswith("WORKDIR "))
    assert settings["HOME"] == folder, "of a user that the image does not know, / would be home, where the hub's cache cannot be written"
    assert settings["USER"]
    commands = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"])
    assert f'ENTRYPOINT ["{next(iter(commands))}"]' in lines


def test_the_files_of_a_project_are_there_and_agree():
    import amradio
    from amradio.yaml12 import parse_yaml

    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "NOTICE", "Dockerfile"):
        assert (ROOT / name).read_text(encoding="utf-8").strip(), name
    citation = parse_yaml((ROOT / "CITATION.cff").read_text(encoding="utf-8"), "CITATION.cff")
    assert citation["license"] == "Apache-2.0"
    assert "arXiv:2312.06709" in str(citation)
    assert {"cff-version", "title", "message", "authors", "type"} <= citation.keys()
    for work in (citation, citation["preferred-citation"]):
        assert {"type", "title", "authors"} <= work.keys()
        assert all(author.keys() & {"name", "family-names"} for author in work["authors"])
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        content = parse_yaml(form.read_text(encoding="utf-8"), form.name)
        assert {"name", "description", "body"} <= set(content)
        assert all(field["type"] == "markdown" or field["attributes"]["label"] for field in content["body"])
    assert amradio.__version__.count(".") == 2
