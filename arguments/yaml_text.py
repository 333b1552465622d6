"""YAML as settings need it: each key once, and nothing that a page of text cannot be."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

LARGEST = 256 * 1024
"""Bytes of a settings file; a long one has four thousand."""
MOST_VALUES, DEEPEST, LONGEST_NUMBER = 10_000, 20, 100
"""Values of a text with its aliases written out, how deep they nest, and letters of one that is no text."""


def read_yaml(text: str) -> Any:
    """The content of one YAML 1.1 document (`100_000` is a number), as LucidDreamer reads it.

    Raises:
        yaml.YAMLError: it is none; or a key comes twice, or there are more values, or deeper ones, than settings have.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader within limits: its time and memory follow the length of the text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > DEEPEST:
            raise ConstructorError(None, None, f"more than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise ConstructorError(None, None, "an alias of what it stands in", mark)
        if node is not None and not alias:
            if isinstance(node, MappingNode):
                _refuse_twice(node)
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
            if self._sizes[id(node)] > MOST_VALUES:
                raise ConstructorError(None, None, f"more than {MOST_VALUES} values", node.start_mark)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if (
            isinstance(node, ScalarNode)
            and len(node.value) > LONGEST_NUMBER
            and not node.tag.endswith(":str")
        ):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{kind} of {len(node.value)} letters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"no valid {kind}", node.start_mark) from error


def _parts(node: Node) -> list[Node]:
    """The nodes that one holds."""
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _refuse_twice(node: MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, ScalarNode):
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                problem = f"{key.value[:40]!r} of line {lines[name]} a second time"
                raise ConstructorError(None, None, problem, key.start_mark)
            lines[name] = line
