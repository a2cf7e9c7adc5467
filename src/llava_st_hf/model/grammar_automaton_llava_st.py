# SPDX-License-Identifier: Apache-2.0
"""The rules of all tasks as one deterministic automaton over classes of characters and coordinates."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np

from .grammar_llava_st import COORDINATES, RULES, TEXTS, parse_rule
from .grammar_text_llava_st import CLASSES, CONDITIONS, TEXT_CLASSES, character_class


_NAMES = tuple(COORDINATES)


@dataclass(frozen=True)
class Automaton:
    """
    A deterministic automaton. State 0 is that of all texts which no answer begins with.

    Args:
        step: (states, classes) next state for each of `grammar_text_llava_st.CLASSES`.
        coordinate: (states,) index in `COORDINATES` of the one that may follow; -1 for none.
        after_coordinate: (states,) next state after it.
        accepts: (states,) whether the answer may end.
        starts: rule → first state.
    """

    step: np.ndarray
    coordinate: np.ndarray
    after_coordinate: np.ndarray
    accepts: np.ndarray
    starts: dict[str, int]


class _Nodes:
    """A nondeterministic automaton: nodes with transitions by a class or coordinate, and without either (`empty`)."""

    def __init__(self):
        self.empty: dict[int, set[int]] = defaultdict(set)
        self.by_symbol: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.closures: dict[frozenset[int], frozenset[int]] = {}
        self.count = 0

    def node(self) -> int:
        self.count += 1
        return self.count - 1

    def add(self, tree: tuple, start: int) -> int:
        """Adds the tree of a rule after the node `start`; returns the node after it."""
        kind, *parts = tree
        if kind == "sequence":
            for part in parts:
                start = self.add(part, start)
            return start
        end = self.node()
        if kind == "choice":
            for part in parts:
                self.empty[self.add(part, start)].add(end)
        elif kind == "optional":
            first = self.node()
            self.empty[start] |= {first, end}
            self.empty[self.add(parts[0], first)].add(end)
        elif kind == "repeat":
            first = self.node()
            last = self.add(parts[0], first)
            self.empty[start].add(first)
            self.empty[last] |= {first, end}
        elif kind == "literal":
            for character in parts[0][:-1]:
                following = self.node()
                self.by_symbol[start][character_class(character)].add(following)
                start = following
            self.by_symbol[start][character_class(parts[0][-1])].add(end)
        elif kind == "coordinate":
            self.by_symbol[start][parts[0]].add(end)
        else:
            self._add_text(parts[0], start, end)
        return end

    def _add_text(self, kind: str, start: int, end: int) -> None:
        conditions = [CONDITIONS[name] for name in TEXTS[kind]]
        first = tuple(condition.first for condition in conditions)
        nodes: dict[tuple[str | None, ...], int] = {first: self.node()}
        self.empty[start].add(nodes[first])
        waiting: list[tuple] = [first]
        while waiting:
            states = waiting.pop()
            if all(condition.accepts(state) for condition, state in zip(conditions, states, strict=True)):
                self.empty[nodes[states]].add(end)
            for symbol in TEXT_CLASSES:
                after = tuple(condition.step(state, symbol) for condition, state in zip(conditions, states, strict=True))
                if None in after:
                    continue
                if after not in nodes:
                    nodes[after] = self.node()
                    waiting.append(after)
                self.by_symbol[nodes[states]][symbol].add(nodes[after])

    def closure(self, nodes: frozenset[int]) -> frozenset[int]:
        """The nodes that are reached from `nodes` without a symbol."""
        if nodes not in self.closures:
            self.closures[nodes] = self._closure(nodes)
        return self.closures[nodes]

    def _closure(self, nodes: frozenset[int]) -> frozenset[int]:
        found, waiting = set(nodes), list(nodes)
        while waiting:
            new = self.empty[waiting.pop()] - found
            found |= new
            waiting += new
        return frozenset(found)


@cache
def answer_automaton() -> Automaton:
    """
    The automaton of `RULES`.

    Raises:
        ValueError: naming two coordinates of a rule that may follow the same text; their bounds would depend on what comes after them.
    """
    nodes = _Nodes()
    first, last = {}, set()
    for name, rule in RULES.items():
        first[name] = nodes.node()
        last.add(nodes.add(parse_rule(rule), first[name]))
    numbers: dict[frozenset[int], int] = {frozenset(): 0}
    starts = {name: numbers.setdefault(nodes.closure(frozenset({node})), len(numbers)) for name, node in first.items()}
    rows: list[list[int]] = []
    for states in (waiting := list(numbers)):
        symbols: dict[str, set[int]] = defaultdict(set)
        for node in states:
            for symbol, following in nodes.by_symbol[node].items():
                symbols[symbol] |= following
        coordinates = [name for name in _NAMES if name in symbols]
        if len(coordinates) > 1:
            raise ValueError(f"Both {' and '.join(coordinates)} may follow the same text of a rule.")
        row: list[int] = []
        for symbol in (*CLASSES, *coordinates):
            after = nodes.closure(frozenset(symbols[symbol]))
            if after not in numbers:
                numbers[after] = len(numbers)
                waiting.append(after)
            row.append(numbers[after])
        coordinate = _NAMES.index(coordinates[0]) if coordinates else -1
        rows.append([*row[: len(CLASSES)], coordinate, row[-1] if coordinates else 0, not last.isdisjoint(states)])
    return _merged(np.array(rows), starts)


def _merged(rows: np.ndarray, starts: dict[str, int]) -> Automaton:
    """The automaton with equivalent states merged. `rows`: next state by class, coordinate, next state after it, whether it may end."""
    follows = [*range(len(CLASSES)), len(CLASSES) + 1]
    fixed = rows[:, [len(CLASSES), len(CLASSES) + 2]]
    groups = np.zeros(len(rows), dtype=np.int64)
    while True:
        described = np.concatenate([groups[:, None], fixed, groups[rows[:, follows]]], axis=1)
        _, representatives, refined = np.unique(described, axis=0, return_index=True, return_inverse=True)
        refined = refined.reshape(-1)
        if len(representatives) == groups.max() + 1:
            break
        groups = refined
    order = np.argsort(representatives)  # state 0 stays state 0
    number = np.argsort(order)
    groups, merged = number[refined], rows[representatives[order]]
    return Automaton(
        step=groups[merged[:, : len(CLASSES)]],
        coordinate=merged[:, len(CLASSES)],
        after_coordinate=groups[merged[:, len(CLASSES) + 1]],
        accepts=merged[:, len(CLASSES) + 2].astype(bool),
        starts={name: int(groups[state]) for name, state in starts.items()},
    )
