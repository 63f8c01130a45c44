"""Metrics of answers to questions on images, as the official scripts of VQA, TextVQA, GQA and POPE compute them."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MATCHES = 3
"""Annotators whose answer a prediction must equal for the full score (VQA, arXiv 1505.00468, section 5)."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
"""The misprinted look-behind is a part of the standard: every period goes that no digit follows."""
MOST_PERIODS = 32
"""Periods that the official script removes at most: it passes a flag of `re` (UNICODE, 32) in the place of the count."""
SHORTENED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll "
    "how's i'd've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at "
    "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's "
    "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _without_one(word: str) -> Iterable[str]:
    """A word with each of its apostrophes left out, one at a time."""
    return (word[:index] + word[index + 1 :] for index, character in enumerate(word) if character == "'")


CONTRACTIONS = {short: word for word in SHORTENED.split() for short in _without_one(word)} | {"somebody'd": "somebodyd"}
"""Contractions that lack an apostrophe -> with it; the last one is the other way round in the official list.

Written from the list of the VQA evaluation (BSD), whose entries that begin with a capital never apply: texts are lower-case by then.
"""


def normalized(answer: str) -> str:
    """An answer in the form in which the VQA metric compares answers (M4C's and Pythia's version, used for TextVQA and VQAv2).

    Lower case; no punctuation; numbers up to ten in digits; no articles; contractions with their apostrophes.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    stripped = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space else " ")
    words = (DIGITS.get(word, word) for word in PERIOD.sub("", stripped, count=MOST_PERIODS).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy, 0 to 1: the mean over all subsets without one annotator of min(1, annotators with this answer / 3).

    answers: of the annotators, ten in all published sets, at least one.
    """
    predicted = normalized(prediction)
    equal = [normalized(answer) == predicted for answer in answers]
    total = sum(equal)
    return sum(min(1.0, (total - is_equal) / MATCHES) for is_equal in equal) / len(equal)


def is_exact(prediction: str, answer: str) -> bool:
    """GQA's match, as LLaVA prepares predictions for it: without the period at the end, in lower case."""
    return prediction.strip().rstrip(".").lower() == answer


def is_yes(prediction: str) -> bool:
    """How POPE reads an answer: no where `no`, `No` or `not` is a word of the first sentence, else yes."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


class YesNoScores(NamedTuple):
    """POPE's numbers, 0 to 1; yes is the positive class."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float
    """Share of predictions, not of labels, that are yes."""


def yes_no_scores(predicted: Sequence[bool], labels: Sequence[bool]) -> YesNoScores:
    """predicted, labels: of each question, True for yes; at least one. A ratio without a denominator is 0."""
    pairs = list(zip(predicted, labels, strict=True))
    true_yes = sum(answer and label for answer, label in pairs)
    said, are = sum(predicted), sum(labels)
    precision, recall = true_yes / said if said else 0.0, true_yes / are if are else 0.0
    f1 = 2 * precision * recall / (precision + recall) if true_yes else 0.0
    return YesNoScores(sum(answer == label for answer, label in pairs) / len(pairs), precision, recall, f1, said / len(pairs))
