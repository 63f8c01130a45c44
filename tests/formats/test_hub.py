"""Models from the hub and to it, against a stand-in of its HTTP interface."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download

import amradio
from amradio import UserError, hub
from amradio.__main__ import main
from hub_stand_in import StandIn, stand_in
from model_folders import layer_scale_vit


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The stand-in in the place of the hub, an empty cache, and a token."""
    with stand_in() as (server, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            file_download, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}", raising=False
        )
        monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: server.token)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return layer_scale_vit(tmp_path / "model")


def upload(server: StandIn, folder: Path, name: str) -> None:
    server.repositories[name] = {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_of_the_hub_is_loaded_as_data(served, folder, tmp_path):
    upload(served, folder, "me/student")
    served.repositories["me/student"] |= {"model.py": b"raise SystemExit('this ran')", "pytorch_model.bin": b"no"}
    images = torch.rand(1, 3, 64, 64)
    model = amradio.load("me/student")
    torch.testing.assert_close(model(images), amradio.load(folder)(images), rtol=0, atol=0)
    fetched = {path.rsplit("/", 1)[1] for _, path in served.requests if "/resolve/" in path}
    assert fetched == {"README.md", "config.json", "model.safetensors"}
    assert not list((tmp_path / "cache").rglob("*.py")) + list((tmp_path / "cache").rglob("*.bin"))
    torch.testing.assert_close(amradio.load("me/student@main")(images), model(images), rtol=0, atol=0)
    served.repositories.clear()
    with hub.no_downloads():  # no network: the cache has it
        torch.testing.assert_close(amradio.load("me/student")(images), model(images), rtol=0, atol=0)


def test_what_the_hub_does_not_have_is_one_message(served, folder):
    upload(served, folder, "me/student")
    served.repositories["me/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    for name, message in (
        ("me/studnet", r"me/studnet: there is no such file or folder, and no model of this name on http"),
        ("me/two--dashes", r"me/two--dashes: there is no such file or folder; give a model folder"),
        ("me/student@v9", r"me/student@v9: .* no model of this name with this revision"),
        ("me/pickled", r"me/pickled: .* has no weights in safetensors, and no others are read from there"),
    ):
        with pytest.raises(UserError, match=message):
            amradio.load(name)
    served.gated.add("me/student")
    with pytest.raises(UserError, match=r"its owner asks you to accept a licence first: do so on http.*/me/student, then `hf auth login`"):
        amradio.load("me/student")


def test_a_folder_of_this_machine_comes_first(served, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "own")
    (tmp_path / "me").mkdir()
    (tmp_path / "own").rename(tmp_path / "me" / "student")
    amradio.load("me/student")
    assert served.requests == []


def test_a_push_says_what_would_go_and_uploads_only_when_told(served, folder, tmp_path, capsys):
    (folder / "notes.py").write_text("print('private')")
    assert main(["push", str(folder), "me/student"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Would go to the hub as me/student" in printed
    assert "Left here: notes.py." in printed
    assert "The weights of clip are not for commercial use, which binds this model." in printed
    assert "Nothing was uploaded." in printed
    assert served.requests == []
    assert main(["push", str(folder), "me/student/", "--yes", "--private"]) == 0
    assert re.search(r"Uploaded: http\S+. Load it: amradio.load\('me/student'\)", " ".join(capsys.readouterr().out.split()))
    assert served.private == {"me/student"}
    assert set(served.repositories["me/student"]) - {".gitattributes"} == {"README.md", "config.json", "model.safetensors"}
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(amradio.load("me/student")(images), amradio.load(folder)(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{folder} student", "student: a name on the hub is owner/name"),
        ("{folder} me/stu..dent", "me/stu..dent: a name on the hub is owner/name"),
        ("{folder}/model.safetensors me/student", "a folder goes to the hub, and this is none"),
        ("{folder}/nowhere me/student", "there is no such folder"),
    ],
)
def test_what_cannot_be_pushed_is_one_message(served, folder, capsys, words, message):
    assert main(["push", *words.format(folder=folder).split(), "--yes"]) == 2
    assert message in capsys.readouterr().err
    assert served.requests == []


def test_nobody_logged_in_a_wrong_token_and_no_network(served, folder, capsys, monkeypatch):
    served.token = "another"
    monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: "wrong")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main(["push", str(folder), "me/student", "--yes"]) == 2
    assert "refused the upload: " in capsys.readouterr().err
    monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(folder), "me/student", "--yes"]) == 2
    assert "nobody is logged in" in capsys.readouterr().err
    with hub.no_downloads():
        assert main(["push", str(folder), "me/student", "--yes"]) == 2
    assert "cannot be reached; nothing was uploaded" in capsys.readouterr().err
    assert served.repositories == {}
