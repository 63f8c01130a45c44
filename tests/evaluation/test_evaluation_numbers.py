"""Numbers of the evaluation room against independent implementations and slow obvious forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from sklearn.neighbors import KNeighborsClassifier

from amradio import neighbours
from amradio.cost import macs
from amradio.drawing.lines import Line, draw_lines
from amradio.errors import UserError
from amradio.evaluation.classification.knn import accuracies, vote
from amradio.evaluation.classification.linear_probe import ClassifierSchedule, train_probes
from amradio.evaluation.classification.retrieval import ownership, ranks
from amradio.evaluation.features.cka import Cka
from amradio.evaluation.features.statistics import describe_features, rank_me, spread_cells
from amradio.evaluation.features.teacher_agreement import Comparison, collapses
from amradio.evaluation.reading import batched
from amradio.evaluation.suite import Suite, run_suite
from amradio.evaluation.text_classifier import class_embeddings, read_templates
from amradio.features import Features
from amradio.labelled.classification import ScenesImagesSettings
from amradio.neighbours import GROUP, Neighbours, nearest_rows
from evaluations import tiny_bench, tiny_model, tiny_teachers

DRAWS = torch.Generator()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAWS.manual_seed(seed), dtype=dtype)


def test_knn_equals_scikit_learn() -> None:
    database, queries = normal(300, 12, seed=1, dtype=torch.float64), normal(41, 12, seed=2, dtype=torch.float64)
    labels = torch.randint(7, (300,), generator=DRAWS.manual_seed(3))
    found = nearest_rows(queries, database, 20)
    for k in (1, 5, 20):
        other = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07))
        other.fit(database.numpy(), labels.numpy())
        shares = vote(found, labels, 7, k, 0.07)
        assert np.abs(shares.numpy() - other.predict_proba(queries.numpy())).max() < 1e-6
        wanted = torch.from_numpy(other.predict(queries.numpy()))
        assert accuracies(found, labels, wanted, [k], 0.07) == {k: 100.0}
    half = labels[:41].clone()
    expected = 100 * float((vote(found, labels, 7, 20, 0.07).argmax(1) == half).double().mean())
    assert accuracies(found, labels, half, [20], 0.07)[20] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(7, 5), (299, 41), (64, 1), (1, 100)])
def test_knn_does_not_depend_on_chunks(chunks: tuple[int, int]) -> None:
    database, queries = normal(300, 12, seed=1), normal(41, 12, seed=2)
    one, other = nearest_rows(queries, database, 9), nearest_rows(queries, database, 9, chunks=chunks)
    assert torch.equal(one.indices, other.indices)
    assert torch.allclose(one.similarities, other.similarities, atol=1e-6)


@pytest.mark.parametrize("rounds", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["random", "common part", "clusters", "twins"])
def test_knn_finds_the_neighbours_of_float64(kind: str, rounds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the first products are rounded, and however alike all vectors are: nothing that float32 tells apart is missed."""
    monkeypatch.setattr(neighbours, "computes_bfloat16", lambda device: rounds)
    monkeypatch.setattr(neighbours, "FIRST_TILE", 64)
    centres = normal(9, 256, seed=5)

    def some(count: int, seed: int) -> torch.Tensor:
        noise, kinds = normal(count, 256, seed=seed), torch.randint(9, (count,), generator=DRAWS.manual_seed(seed))
        rows = {"random": noise, "common part": noise + 3, "clusters": centres[kinds] + 0.7 * noise, "twins": noise.repeat(2, 1)[:count]}
        return rows[kind]

    database, queries = some(12000, 1), some(70, 2)
    if kind == "twins":
        database = torch.cat((database[:6000], database[:6000]))
    looked, plain = [], neighbours._reaching
    monkeypatch.setattr(neighbours, "_reaching", lambda *given: looked.append(plain(*given)) or looked[-1])
    found = nearest_rows(queries, database, 10, chunks=(4000, 64))
    exact = F.normalize(queries.double(), dim=1) @ F.normalize(database.double(), dim=1).T
    wanted = exact.topk(10).values
    assert torch.allclose(found.similarities.double(), wanted, atol=1e-6)
    assert torch.allclose(exact.gather(1, found.indices), wanted, atol=1e-6)
    assert all(len(row.unique()) == 10 for row in found.indices)
    assert any(pairs is None for pairs in looked), "the first rows are all looked at"
    assert any(pairs is not None for pairs in looked), "later only those that can be near"


def test_knn_rounds_no_more_than_it_allows_for() -> None:
    centre = F.normalize(normal(50, 96, seed=3) + 2, dim=1).mean(0)
    asked = neighbours._vectors(F.normalize(normal(80, 96, seed=1) + 2, dim=1), centre, is_asked=True)
    known = neighbours._vectors(F.normalize(normal(300, 96, seed=2) + 2, dim=1), centre)
    rounded = asked.coarse.double() @ known.coarse.double().T + asked.shift.double()
    away = (rounded - asked.exact.double() @ known.exact.double().T).abs()
    allowed = neighbours.UNIT * ((2 + neighbours.UNIT) * asked.norms * known.norms.T + known.shift.abs().T) + neighbours.SLACK
    assert bool((away <= allowed).all())
    assert float((away / allowed).max()) > 0.05, "a bound that is never come near proves nothing"


def test_knn_looks_through_few_groups_and_misses_nothing() -> None:
    similarities = normal(6, GROUP * 100, seed=4)
    similarities[0, :20] += 10  # all of the best in one group
    least = similarities.topk(20).values[:, -1:]
    found = neighbours._reaching(similarities, least, GROUP * 100 - 1)
    assert found is not None
    wanted = (similarities >= least)[:, :-1].nonzero()
    assert sorted(zip(*(each.tolist() for each in found), strict=True)) == [tuple(pair) for pair in wanted.tolist()]
    assert found[0].tolist() == sorted(found[0].tolist())
    assert neighbours._reaching(similarities, similarities.amin(1, keepdim=True), GROUP * 100) is None


def test_knn_reads_a_memory_map(tmp_path: Path) -> None:
    database = normal(200, 8, seed=1).half()
    database.numpy().tofile(tmp_path / "database.bin")
    mapped = np.memmap(tmp_path / "database.bin", np.float16, "r", shape=(200, 8))
    one, other = (nearest_rows(normal(9, 8, seed=2), each, 5, chunks=(64, 4)) for each in (mapped, database))
    assert torch.equal(one.indices, other.indices)


def test_more_neighbours_than_images() -> None:
    with pytest.raises(UserError, match="k: 5 neighbours were asked for, the database has 4 images"):
        nearest_rows(normal(2, 3), normal(4, 3), 5)


def test_vote_of_far_neighbours_stays_finite() -> None:
    found = Neighbours(torch.tensor([[-0.5, -1.0]]), torch.tensor([[0, 1]]))
    assert vote(found, torch.tensor([0, 1]), 2, 2, 1e-3).tolist() == [[1.0, 0.0]]


@pytest.mark.slow
def test_zero_shot_equals_the_library(tmp_path: Path) -> None:
    teacher = tiny_teachers(tmp_path)["clip"]
    library = transformers.CLIPModel.from_pretrained(tmp_path / "clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "clip")
    scenes = ScenesImagesSettings(length=16, image_size=32).build()
    (_, images), *_ = batched([torch.from_numpy(scenes.read(index).transpose(2, 0, 1).copy()) for index in range(16)], torch.device("cpu"))
    prompts = [f"a photo of a {name}" for name in scenes.classes]
    with torch.no_grad():
        pixels = (images - teacher.mean) / teacher.std
        logits = library(pixel_values=pixels, **tokenizer(prompts, padding=True, return_tensors="pt")).logits_per_image
    classes = class_embeddings(teacher, scenes.classes, ["a photo of a {}"])
    cosines = F.normalize(teacher(teacher.prepare(images)).summary, dim=1) @ classes.T
    ours = library.logit_scale.detach().exp() * cosines
    assert torch.allclose(ours.softmax(1), logits.softmax(1), atol=1e-5)
    gaps = logits.sort(1).values.diff(dim=1)
    assert float(gaps.median()) > 1e-4, "logits that say nothing have no order"
    assert torch.equal(ours.argmax(1), logits.argmax(1))


@pytest.mark.slow
def test_embeddings_of_classes_are_averaged_by_the_published_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_teachers(tmp_path)["clip"]
    classes, templates = ["striped red", "dotted blue", "plain green"], ["a {}", "the {} thing", "a photo of {}"]
    monkeypatch.setattr("amradio.evaluation.text_classifier.TEXTS_AT_ONCE", 6)
    found = class_embeddings(teacher, classes, templates)
    for name, embedding in zip(classes, found, strict=True):
        each = [F.normalize(teacher.encode_text([template.format(name)]), dim=1) for template in templates]
        assert torch.allclose(embedding, F.normalize(torch.stack(each).mean(0), dim=1)[0], atol=1e-5)


def test_templates(tmp_path: Path) -> None:
    openai = read_templates("openai")
    assert len(openai) == 80
    assert "a bad photo of a {}." in openai
    (tmp_path / "mine.txt").write_text("one {}\n\n{} two\n")
    assert read_templates(str(tmp_path / "mine.txt")) == ["one {}", "{} two"]
    with pytest.raises(UserError, match="no such file"):
        read_templates("open_ai")
    with pytest.raises(UserError, match=r"each has one \{\} where the class goes, found 'a photo'"):
        read_templates(["{}", "a photo"])


def test_ranks_equal_the_slow_form() -> None:
    images, texts = F.normalize(normal(7, 4, seed=1), dim=1), F.normalize(normal(14, 4, seed=2), dim=1)
    words = [f"text {number % 12}" for number in range(14)]  # two texts stand with two images
    owner = torch.arange(14) // 2
    owns, which = ownership(words, owner, 7)
    by_image = ranks(images, texts, lambda part: owns[part][:, which])
    by_text = ranks(texts, images, lambda part: owns[:, which[part]].T)
    own = [{words[index] for index in range(14) if owner[index] == image} for image in range(7)]
    for image in range(7):
        order = (texts @ images[image]).argsort(descending=True).tolist()
        assert by_image[image] == next(place for place, text in enumerate(order) if words[text] in own[image])
    for text in range(14):
        order = (images @ texts[text]).argsort(descending=True).tolist()
        assert by_text[text] == next(place for place, image in enumerate(order) if words[text] in own[image])


def test_a_constant_answer_retrieves_nothing() -> None:
    images, texts = torch.ones(5, 3), normal(5, 3, seed=1)
    owns, which = ownership([str(number) for number in range(5)], torch.arange(5), 5)
    assert (ranks(texts, images, lambda part: owns[:, which[part]].T) == 4).all()


def test_cka_equals_the_plain_formula() -> None:
    x, y = normal(60, 5, seed=1, dtype=torch.float64) + 3, normal(60, 7, seed=2, dtype=torch.float64)
    y[:, :5] += x
    found = Cka(5, 7)
    for start in range(0, 60, 17):
        found.update(x[start : start + 17], y[start : start + 17])
    centre = torch.eye(60, dtype=torch.float64) - 1 / 60
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / (k.square().sum() * m.square().sum()).sqrt()
    assert found.value() == pytest.approx(float(expected), abs=1e-12)
    same = Cka(5, 5)
    rotation = torch.linalg.qr(normal(5, 5, seed=3, dtype=torch.float64)).Q
    same.update(x, 4 * x @ rotation + 1)
    assert same.value() == pytest.approx(1, abs=1e-9)


def test_rank_me_equals_the_plain_formula() -> None:
    features = normal(50, 8, seed=1)
    values = np.linalg.svd(features.numpy().astype(np.float64), compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert rank_me(features) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())), rel=1e-9)
    assert rank_me(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rank_me(torch.ones(9, 6)) == pytest.approx(1, rel=1e-4)


def test_statistics_of_known_features() -> None:
    features = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    numbers, details = describe_features(features)
    assert numbers["norm"] == 5
    assert details == {"channel_mean": [3.0, 0.0], "channel_std": [0.0, 4.0]}
    grid = torch.arange(12.0).reshape(1, 3, 4, 1)
    assert spread_cells(grid, 4).flatten().tolist() == [0, 3, 6, 9]
    assert spread_cells(grid, 50).shape == (1, 12, 1)


def test_probes_of_a_sweep_equal_those_trained_alone() -> None:
    features, labels = normal(40, 6, seed=1), torch.randint(3, (40,), generator=DRAWS.manual_seed(2))
    weights, biases = train_probes(features, labels, 3, ClassifierSchedule((0.01, 0.1, 1.0), 4, 16))
    for index, rate in enumerate((0.01, 0.1, 1.0)):
        layer = torch.nn.Linear(6, 3)
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / 12)))
        draws = torch.Generator().manual_seed(0)
        for _ in range(4):
            for batch in torch.randperm(40, generator=draws).split(16):
                optimizer.zero_grad()
                F.cross_entropy(layer(features[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
        assert torch.allclose(weights[index], layer.weight.T, atol=1e-5)
        assert torch.allclose(biases[index, 0], layer.bias, atol=1e-5)


def test_a_probe_learns_what_can_be_learnt() -> None:
    labels = torch.arange(200) % 4
    features = F.one_hot(labels, 4) + 0.1 * normal(200, 4, seed=1)
    weights, biases = train_probes(features, labels, 4, ClassifierSchedule((0.3,), 20, 32))
    assert ((features @ weights[0] + biases[0]).argmax(1) == labels).all()


def test_agreement_of_known_features() -> None:
    target = normal(50, 3, 3, 6, seed=1) * torch.tensor([1.0, 2, 3, 1, 1, 1]) + 5
    flat = target.flatten(0, 2).double()
    statistics = (flat.mean(0), flat.std(0, correction=0))

    def values(prediction: torch.Tensor) -> dict[str, float]:
        found = Comparison("spatial", statistics, 9)
        for start in range(0, 50, 20):
            found.update(prediction[start : start + 20], target[start : start + 20])
        return found.values()

    perfect = values(target)
    assert perfect["standardized_cosine"] == pytest.approx(1, abs=1e-5)
    assert perfect["cka"] == pytest.approx(1, abs=1e-6)
    assert perfect["loss"] == pytest.approx(0, abs=1e-5)
    constant = values(statistics[0].float().expand_as(target))
    assert constant["standardized_cosine"] == pytest.approx(0, abs=1e-3)
    assert constant["cosine"] == pytest.approx(constant["constant_cosine"], abs=1e-5)
    assert constant["fidelity"] == pytest.approx(1, rel=1e-5), "the mean explains nothing: error = variance"
    noisy = values(target + 0.5 * normal(50, 3, 3, 6, seed=2))
    noise = (0.5 * normal(50, 3, 3, 6, seed=2)).square().sum(-1).mean()
    assert noisy["fidelity"] == pytest.approx(float(statistics[1].square().sum() / noise), rel=1e-4)


def test_a_collapse_is_said_plainly() -> None:
    key = "spatial_standardized_cosine"
    by_size = {"student/dino": {224: {key: 0.8}, 512: {key: 0.75}, 768: {key: 0.2}}, "student/sam": {224: {key: 0.01}, 512: {key: -0.02}}}
    (warning,) = collapses(by_size)
    assert warning.startswith("warning: student/dino spatial collapses at 768 px (0.20), against 0.80 at 224 px")


def test_chart(tmp_path: Path) -> None:
    from PIL import Image

    draw_lines([Line("clip", [(224, 0.5), (448, 0.7)]), Line("sam", [(224, -0.1)])], tmp_path / "deep" / "plot.png", "title")
    with Image.open(tmp_path / "deep" / "plot.png") as picture:
        assert len(picture.convert("RGB").getcolors(100_000)) > 3


@pytest.mark.slow
def test_macs_of_a_known_network(tmp_path: Path) -> None:
    linear = torch.nn.Linear(48, 10)
    found = macs(lambda images: Features(linear(images.flatten(1)), None), torch.rand(2, 3, 4, 4))
    assert found == 2 * 48 * 10
    teachers = tiny_teachers(tmp_path)
    model = tiny_model(teachers)
    counted = macs(model, torch.rand(1, 3, 32, 32))
    tokens, dim = 16 + model.network.student.num_summaries, 32
    assert counted > tokens * dim * (4 * dim + 8 * dim), "attention and the MLP of one block"


@pytest.mark.slow
def test_a_suite_names_all_that_is_missing_before_it_starts(tmp_path: Path) -> None:
    suite = Suite.load(
        "evaluations.a={type: knn, database: {type: class_folder, path: /nowhere}, queries: {type: scenes}}",
        "evaluations.b={type: zero_shot, data: {type: scenes}, templates: [photo]}",
        "device=cpu",
    )
    with pytest.raises(UserError) as error:
        run_suite(suite, tiny_bench(tmp_path))
    assert [problem.split(":")[0] for problem in error.value.problems] == ["evaluations.a", "evaluations.b"]
    with pytest.raises(UserError, match="there is no type 'kn'; did you mean 'knn'"):
        Suite.load("evaluations.a={type: kn}")
