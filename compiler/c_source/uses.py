"""What the statements of a stage function use, and which values need no variable of their own.

Templates name every value by a stack cell (``effc.kernels.builder.bind``), for LLVM to turn into
registers. Printed like that C would be hard to read, so a cell is printed where it is read if that
changes nothing: if it is read once, and nothing that it is made of is overwritten in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from effc.c_source.half import lanes_of

__all__ = ["Uses", "flat"]

Node = Any  # tvm.tirx nodes have no useful static types
_MEMORY = 0
"""Stands for everything behind parameters: they may be the same."""


@dataclass
class _Pending:
    """A cell that could still be printed later: what it reads."""

    reads: set[int]


class Uses:
    """What a function's body uses.

    Attributes:
        counts: How often a variable is read by statements that matter.
        loaded: Buffers that are read.
        stores: Store statements per buffer.
        written: Pointer variables through which something is stored.
        parameters: Buffers that lie behind a parameter.
        cells: Value by local buffer, of those that are stored once, as a whole and in the
            block that declares them: constants, once they have their value.
        inlined: Those that are printed where they are read.
    """

    def __init__(self, body: Node) -> None:
        self.counts: Counter[int] = Counter()
        self.stores: Counter[int] = Counter()
        self.written: set[int] = set()
        self.parameters: set[int] = set()
        self.cells: dict[int, Node] = {}
        self._loads: Counter[int] = Counter()
        self._behind: dict[int, int] = {}
        self._bound: dict[int, Node] = {}
        self._movable: set[int] = set()
        self._stored: dict[int, list[Node]] = {}
        self._read_by_all: list[Node] = []
        self._block(body)
        self._count()
        self.cells = {key: v for key, v in self.cells.items() if self.stores[key] == 1}
        self.inlined = self._inlined()

    def _inlined(self) -> dict[int, Node]:
        """The cells that are printed where they are read, in the order of their stores."""
        found: dict[int, Node] = {}
        steady: set[int] = set()  # may be printed anywhere: nothing behind them changes
        for key, value in self.cells.items():
            fixed = all(hash(source) in steady for source in _sources(value))
            once = self._loads[key] == 1
            if once and key in self._movable:
                found[key] = value
                if not fixed:
                    continue
            elif fixed and (once or type(value).__name__ == "TensorLoad"):
                found[key] = value
            steady.add(key)
        return found

    @property
    def pointers(self) -> set[int]:
        """Pointer variables that are used."""
        return {self._behind[key] for key in {*self.loaded, *self.stores} if key in self._behind}

    @property
    def loaded(self) -> set[int]:
        """Buffers that something reads."""
        return {key for key, count in self._loads.items() if count}

    def _block(self, node: Node) -> None:
        sizes: dict[int, int] = {}
        pending: dict[int, _Pending] = {}
        for statement in flat(node):
            kind = type(statement).__name__
            if kind == "Bind":
                self._bound[hash(statement.var)] = statement.value
                self._use_pending(statement.value, pending)
                continue
            if kind == "AllocBuffer":
                sizes[hash(statement.buffer)] = int(statement.buffer.shape[0])
                continue
            if kind == "DeclBuffer":
                self.parameters.add(hash(statement.buffer))
                self._behind[hash(statement.buffer)] = hash(statement.data)
                continue
            if kind == "BufferStore":
                self._store(statement, sizes, pending)
                continue
            pending.clear()
            if kind == "For":
                self._read_by_all += [statement.min, statement.extent]
            elif kind in ("IfThenElse", "While"):
                self._read_by_all.append(statement.condition)
            for name in ("body", "then_case", "else_case"):
                inner = getattr(statement, name, None)
                if inner is not None:
                    self._block(inner)

    def _store(self, node: Node, sizes: dict[int, int], pending: dict[int, _Pending]) -> None:
        key, value = hash(node.buffer), node.value
        local = key not in self._behind
        read = self._stored.setdefault(key, []) if local else self._read_by_all
        read += [value, *node.indices]
        reads = self._use_pending(value, pending)
        overwritten = _MEMORY if key in self._behind else key
        for other in [k for k, cell in pending.items() if overwritten in cell.reads]:
            del pending[other]
        self.stores[key] += 1
        if key in self._behind:
            self.written.add(self._behind[key])
        elif sizes.get(key) == lanes_of(value):
            self.cells[key] = value
            pending[key] = _Pending(reads)

    def _use_pending(self, value: Node, pending: dict[int, _Pending]) -> set[int]:
        """Note cells that may be printed here; all that the value reads then, however deep."""
        reads: set[int] = set()
        shuffled = {
            hash(source)
            for x in _expressions(value)
            if type(x).__name__ == "Shuffle"
            for source in _sources(x)
        }
        for source in map(hash, _sources(value)):
            reads.add(_MEMORY if source in self.parameters else source)
            if source in pending and source not in shuffled:
                self._movable.add(source)
                reads |= pending[source].reads
        return reads

    def _count(self) -> None:
        """Count what is read for the sake of something outside of the function's own variables."""
        waiting = self._read_by_all
        while waiting:
            for x in _expressions(waiting.pop()):
                kind = type(x).__name__
                if kind == "Var":
                    key, counts, behind = hash(x), self.counts, self._bound
                    found = [behind[key]] if key in behind else []
                elif kind == "TensorLoad":
                    key, counts = hash(x.source), self._loads
                    found = self._stored.get(key, [])
                else:
                    continue
                if not counts[key]:
                    waiting += found
                counts[key] += 1

    def reads_memory(self, value: Node) -> bool:
        """Whether an expression loads through a parameter, as it is printed."""
        return any(
            hash(source) in self.parameters
            or (hash(source) in self.inlined and self.reads_memory(self.inlined[hash(source)]))
            for source in _sources(value)
        )


def _sources(expression: Node) -> Iterator[Node]:
    """Buffers that an expression loads from."""
    return (x.source for x in _expressions(expression) if type(x).__name__ == "TensorLoad")


def _expressions(expression: Node) -> Iterator[Node]:
    """An expression and all in it."""
    stack = [expression]
    while stack:
        x = stack.pop()
        yield x
        stack.extend(_operands(x))


_OPERANDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Var", "IntImm", "FloatImm", "StringImm"), ()),
    **dict.fromkeys(("Cast", "Broadcast"), ("value",)),
    "Ramp": ("base",),
    "Not": ("a",),
    "Select": ("condition", "true_value", "false_value"),
}
_LISTS = {"Call": "args", "TensorLoad": "indices"}


def _picked(shuffle: Node) -> list[Node]:
    """The vectors that a shuffle takes lanes of."""
    owners = [vector for vector in shuffle.vectors for _ in range(lanes_of(vector))]
    chosen = {hash(v): v for v in (owners[int(index)] for index in shuffle.indices)}
    return list(chosen.values())


def _operands(x: Node) -> list[Node]:
    kind = type(x).__name__
    if kind == "Shuffle":
        return _picked(x)
    if kind in _LISTS:
        return list(getattr(x, _LISTS[kind]))
    return [getattr(x, name) for name in _OPERANDS.get(kind, ("a", "b"))]


def flat(node: Node) -> Sequence[Node]:
    """The statements of a block."""
    return list(node.seq) if type(node).__name__ == "SeqStmt" else [node]
