"""YAML 1.2 with the core schema, bounded: what recipes, evaluation files and `key=value` words are written in.

ruamel.yaml does the syntax. A scalar without quotes is a number, a truth value or null only where the core schema says so (YAML 1.2.2,
section 10.3.2): `no`, `on`, `1:30` and `2024-11-25` are texts, and `010` is ten. Merge keys (`<<`) and anchors are taken, tags are not.
"""

import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, DocumentStartEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent, StreamStartEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from .errors import UserError, shown

DEEPEST = 60
"""Levels of mappings and lists within one another, with anchors put in."""
MOST_NODES = 100_000
"""Values of a file, with anchors put in where they are used."""
MOST_DIGITS = 400
"""Digits of a number: the largest float has 309."""

_BYTES = [chr(0xDC00 + byte) for byte in range(0x80, 0x100)]
"""Bytes of file names that are not UTF-8, as the command line gives them; YAML takes no surrogates, so others stand in for them."""
_STAND_INS = {ord(byte): 0xF700 + ord(byte) - 0xDC00 for byte in _BYTES}
_BYTES_AGAIN = {stand_in: byte for byte, stand_in in _STAND_INS.items()}

_WORDS = {"null": None, "Null": None, "NULL": None, "~": None, "": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGERS = ((re.compile(r"[-+]?[0-9]+"), 10), (re.compile(r"0o[0-7]+"), 8), (re.compile(r"0x[0-9a-fA-F]+"), 16))
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def plain_value(text: str) -> Any:
    """What a scalar without quotes is by the core schema: None, bool, int, float, or the text itself. UserError beyond `MOST_DIGITS`."""
    if text in _WORDS:
        return _WORDS[text]
    base = next((base for pattern, base in _INTEGERS if pattern.fullmatch(text)), None)
    if base is None and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MOST_DIGITS:
        raise UserError(f"a number of {len(text):,} characters; at most {MOST_DIGITS} are taken, and quotes make it a text")
    if base is not None:
        return int(text, base)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def parse_yaml(text: str, where: str) -> Any:
    """The one document in `text`: dicts, lists, str, int, float, bool, None.

    where: the file or word, for messages. Raises UserError, which names it and the line, where the text is not YAML 1.2, a key stands twice
    in a mapping, a tag is used, an anchor is unknown or contains itself, or the bounds of this module are exceeded. Nothing is expanded
    before it was counted.
    """
    has_bytes = any(character in text for character in _BYTES) if not text.isprintable() else False
    reader = _Reader(text.translate(_STAND_INS) if has_bytes else text, where)
    try:
        return _with_bytes(reader.document()) if has_bytes else reader.document()
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        reader.refuse(f"not valid YAML ({_in_short(str(problem))})", mark.line if mark else None)


def _with_bytes(value: Any) -> Any:
    """The value with its bytes that are not UTF-8 in the place of their stand-ins."""
    if isinstance(value, str):
        return value.translate(_BYTES_AGAIN)
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    return {_with_bytes(key): _with_bytes(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Node(NamedTuple):
    value: Any
    size: int
    """Values in it, itself included, with anchors put in."""
    height: int
    """Levels below it."""


class _Reader:
    """Builds the value from the library's events."""

    def __init__(self, text: str, where: str) -> None:
        self.where, self.has_lines = where, "\n" in text.strip()
        self.events: Iterator[Any] = iter(YAML(typ="safe", pure=True).parse(text))
        self.anchors: dict[str, _Node | None] = {}
        """None while the value is being read."""

    def refuse(self, problem: str, line: int | None = None) -> NoReturn:
        prefix = f" line {line + 1}:" if line is not None and self.has_lines else ""
        raise UserError(f"{self.where}:{prefix} {problem}")

    def document(self) -> Any:
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.refuse("a second document begins; put it into a file of its own", event.start_mark.line)
                value = self.node(next(self.events), 0).value
            assert documents or isinstance(event, StreamStartEvent) or value is None
        return value

    def node(self, event: Any, depth: int) -> _Node:
        line = event.start_mark.line
        if depth > DEEPEST:
            self.refuse(f"nested more than {DEEPEST} levels deep", line)
        if isinstance(event, AliasEvent):
            return self.alias(event, depth)
        if event.tag is not None:
            self.refuse(f"the tag {_in_short(_tag(event))}: tags are not taken; leave it out, and quote what is to be a text", line)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            node = _Node(self.scalar(event), 1, 0)
        elif isinstance(event, SequenceStartEvent):
            items = [self.node(event, depth + 1) for event in self.until_end()]
            node = self.joined([item.value for item in items], items, line)
        else:
            assert isinstance(event, MappingStartEvent)
            node = self.mapping(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, depth: int) -> _Node:
        line, name = event.start_mark.line, _in_short(event.anchor)
        if event.anchor not in self.anchors:
            self.refuse(f"*{name}: there is no anchor &{name} above it; a text that begins with * needs quotes", line)
        node = self.anchors[event.anchor]
        if node is None:
            self.refuse(f"*{name}: the anchor &{name} contains itself", line)
        if depth + node.height > DEEPEST:
            self.refuse(f"*{name}: nested more than {DEEPEST} levels deep", line)
        return node

    def until_end(self) -> Iterator[Any]:
        for event in self.events:
            if type(event).__name__ in ("SequenceEndEvent", "MappingEndEvent"):
                return
            yield event

    def joined(self, value: Any, parts: list[_Node], line: int) -> _Node:
        size = 1 + sum(part.size for part in parts)
        if size > MOST_NODES:
            self.refuse(f"more than {MOST_NODES:,} values, with anchors put in; is an anchor used within anchors?", line)
        return _Node(value, size, 1 + max((part.height for part in parts), default=-1))

    def mapping(self, start: Any, depth: int) -> _Node:
        merged: dict[Any, Any] = {}
        entries: dict[Any, Any] = {}
        lines: dict[str, int] = {}
        parts: list[_Node] = []
        for event in self.until_end():
            line = event.start_mark.line
            if not isinstance(event, ScalarEvent):
                self.refuse("a key is a word or a number; quote the key", line)
            is_merge = event.value == "<<" and event.style is None
            key = event.value if is_merge else self.node(event, depth + 1).value
            next_event = next(self.events)
            if start.flow_style:
                self.check_colon(event, next_event)
            value_node = self.node(next_event, depth + 1)
            parts.append(value_node)
            if str(key) in lines:
                first, second = lines[str(key)] + 1, line + 1
                at = f"in lines {first} and {second}" if first != second else "twice" + f" in line {first}" * self.has_lines
                self.refuse(f"the key '{_in_short(str(key))}' stands {at}; keep one")
            lines[str(key)] = line
            if is_merge:
                merged = self.merged(value_node.value, line)
            else:
                entries[key] = value_node.value
        return self.joined({**merged, **entries}, parts, start.start_mark.line)

    def check_colon(self, key: Any, value: Any) -> None:
        r"""`{type:timm}` is a mapping with the key `type:timm`, which nobody means."""
        empty = isinstance(value, ScalarEvent) and value.value == "" and value.style is None
        if empty and key.style is None and re.match(r"[\w-]+:\S", key.value):
            name, _, rest = key.value.partition(":")
            right = f"'{_in_short(name)}: {_in_short(rest)}'"
            self.refuse(f"'{_in_short(key.value)}' has no value: YAML wants a space after the colon; write {right}", key.start_mark.line)

    def merged(self, value: Any, line: int) -> dict[Any, Any]:
        """The mappings of a merge key; the first of a list wins."""
        maps = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in maps):
            self.refuse("'<<' merges a mapping (*anchor) or a list of mappings; quote the key to have it as a text", line)
        together: dict[Any, Any] = {}
        for part in maps:
            together = {**part, **together} if together else dict(part)
        return together

    def scalar(self, event: Any) -> Any:
        if event.style is not None:
            return event.value
        try:
            return plain_value(event.value)
        except UserError as error:
            self.refuse(error.problems[0], event.start_mark.line)


def _tag(event: Any) -> str:
    return str(event.tag).replace("tag:yaml.org,2002:", "!!")


def _in_short(text: str) -> str:
    return shown(text if len(text) <= 60 else f"{text[:60]}...")


class _Representer(SafeRepresenter):
    """Texts in quotes wherever a reader of YAML 1.1 or 1.2 would take them for something else."""

    def represent_str(self, data: str) -> ScalarNode:
        plain = re.fullmatch(r"[A-Za-z_/.][\w/.,+ -]*", data, re.ASCII) and data == data.strip() and plain_value(data[:MOST_DIGITS]) == data
        plain = plain and not re.fullmatch(r"(?i:y|n|yes|no|on|off)|\.[0-9._]*(?:[eE][-+]?[0-9]+)?", data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else "'" if data.isprintable() else '"')


_Representer.add_representer(str, _Representer.represent_str)


def write_yaml(value: Any) -> str:
    """YAML of dicts, lists, str, int, float, bool and None that `parse_yaml` reads back equal; the innermost collections on one line."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = None
    writer.width = 120
    writer.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue()
