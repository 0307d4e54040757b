"""Prints a stage function, lowered by ``effc.c_source.lower``, as a C function."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tvm.sym import Analyzer

from effc.c_source.expressions import Expressions, NeedsNumber
from effc.c_source.half import dtype_of, lanes_of
from effc.c_source.types import c_type
from effc.c_source.uses import Uses, flat
from effc.errors import InternalError, UnsupportedError

__all__ = ["FunctionPrinter"]

Node = Any  # tvm.tirx nodes have no useful static types
_WIDTH = 100
_LOOPS = "ijkmnpqrs"
_KEYWORDS = (
    "auto|break|case|char|const|continue|default|do|double|else|enum|extern|float|for|goto|if|"
    "inline|int|long|register|restrict|return|short|signed|sizeof|static|struct|switch|typedef|"
    "union|unsigned|void|volatile|while"
)
_RESERVED = re.compile(f"{_KEYWORDS}|[{_LOOPS}]|[itv][0-9]+|lane|[a-z_0-9]+_[fiu][0-9]+")
"""Names that are not for parameters: C's, those of variables and of helper functions."""


class FunctionPrinter:
    """Prints one function.

    Args:
        symbol: Name of the C function.
        func: PrimFunc that was lowered for C; its parameters are pointers.

    Attributes:
        parameters: C declarations of the parameters.
        helpers, headers: What the text needs, see ``Expressions``.
    """

    def __init__(self, symbol: str, func: Node) -> None:
        self.symbol = symbol
        self._say = Expressions()
        self._uses = Uses(func.body)
        self._depth = 0
        self._counts: Counter[str] = Counter()
        self._declared: dict[int, Node] = {}
        self._pointers: dict[int, tuple[str, str]] = {}
        self._initial: dict[int, Node] = {}
        self._firsts: dict[int, Node] = {}
        self.parameters: list[str] = []
        self.dtypes: tuple[str, ...] = tuple(str(p.ty.element_type) for p in func.params)
        for param in func.params:
            self._parameter(param)
        self._body = list(self._block(func.body, 1))
        self._unused = [
            self._pointers[hash(p)][0] for p in func.params if hash(p) not in self._uses.pointers
        ]

    @property
    def helpers(self) -> set[str]:
        """Names of helper functions."""
        return self._say.helpers

    @property
    def headers(self) -> set[str]:
        """Standard headers."""
        return self._say.headers

    @property
    def signature(self) -> str:
        """The function's declaration, without semicolon, wrapped."""
        head = f"void {self.symbol}("
        lines = [head + self.parameters[0]]
        for parameter in self.parameters[1:]:
            if len(lines[-1]) + len(parameter) + 3 <= _WIDTH:
                lines[-1] += f", {parameter}"
            else:
                lines[-1] += ","
                lines.append(" " * len(head) + parameter)
        return "\n".join(lines) + ")"

    def text(self) -> str:
        """The function's definition."""
        unused = [f"    (void){name};" for name in self._unused]
        return "\n".join([self.signature, "{", *unused, *self._body, "}", ""])

    def _parameter(self, param: Node) -> None:
        name = _identifier(str(param.name))
        while _RESERVED.fullmatch(name) or name in {n for n, _ in self._pointers.values()}:
            name += "_"
        dtype = str(param.ty.element_type)
        written = hash(param) in self._uses.written
        self._pointers[hash(param)] = (name, dtype)
        self._say.name(param, name)
        self.parameters.append(f"{'' if written else 'const '}{c_type(dtype)} *{name}")

    def _fresh(self, stem: str) -> str:
        self._counts[stem] += 1
        return f"{stem}{self._counts[stem]}"

    def _block(self, node: Node, level: int) -> Iterator[str]:
        statements = flat(node)
        for number, statement in enumerate(statements):
            if hash(statement) in self._initial:
                continue
            if type(statement).__name__ == "AllocBuffer":
                self._note_initial(statement, statements[number + 1 :])
            yield from self._statement(statement, level)

    def _note_initial(self, node: Node, rest: Sequence[Node]) -> None:
        """Remember the store behind a declaration that gives the variable its first value."""
        store = rest[0] if rest else node
        if type(store).__name__ != "BufferStore" or hash(store.buffer) != hash(node.buffer):
            return
        single = lanes_of(store.value) == 1 == int(node.buffer.shape[0])
        if single and hash(node.buffer) not in self._uses.cells:
            self._initial[hash(store)] = store
            self._firsts[hash(node.buffer)] = store.value

    def _statement(self, node: Node, level: int) -> Iterable[str]:
        rule = getattr(self, f"_{type(node).__name__.lower()}", None)
        if rule is None:
            raise InternalError("no C for a statement", where=self.symbol, got=type(node).__name__)
        return rule(node, level)  # type: ignore[no-any-return]

    def _line(self, text: str, level: int) -> Iterator[str]:
        yield _wrapped("    " * level + text, level)

    def _attrstmt(self, node: Node, level: int) -> Iterable[str]:
        return self._block(node.body, level)

    def _evaluate(self, node: Node, level: int) -> Iterable[str]:
        """Prefetches and constants: nothing that changes a result."""
        name = getattr(getattr(node.value, "op", None), "name", "")
        if type(node.value).__name__ == "IntImm" or name.endswith("call_llvm_intrin"):
            return
        raise UnsupportedError("portable C has no such operation", got=str(node))
        yield ""

    def _declbuffer(self, node: Node, level: int) -> Iterable[str]:
        buffer = node.buffer
        name, dtype = self._pointers[hash(node.data)]
        wanted = dtype_of_buffer(buffer)
        if wanted != dtype:
            alias = self._fresh(f"{name}_{wanted}_")
            const = "" if hash(node.data) in self._uses.written else "const "
            kind = c_type(wanted)
            yield from self._line(
                f"{const}{kind} *{alias} = ({const}{kind} *)(const void *){name};", level
            )
            name = alias
        self._say.buffers.names[hash(buffer)] = name

    def _allocbuffer(self, node: Node, level: int) -> Iterable[str]:
        buffer = node.buffer
        key = hash(buffer)
        if key not in self._uses.loaded:
            self._declared[key] = None
            self._say.buffers.names[key] = ""
            return
        (size,) = buffer.shape
        if key in self._uses.inlined:
            self._say.buffers.values[key] = self._uses.inlined[key]
            self._declared[key] = None
            return
        name = self._fresh("t" if int(size) <= 1 else "v")
        self._say.buffers.names[key] = name
        kind = c_type(dtype_of_buffer(buffer))
        if int(size) == 1:
            self._say.buffers.scalars.add(key)
            if key in self._uses.cells:
                self._declared[key] = f"const {kind} {name}"
                return
            first = self._firsts.get(key)
            value = "0" if first is None else self._say.scalar(first)  # compilers see no flow
            yield from self._line(f"{kind} {name} = {value};", level)
        else:
            yield from self._line(f"{kind} {name}[{int(size)}];", level)

    def _bufferstore(self, node: Node, level: int) -> Iterable[str]:
        key = hash(node.buffer)
        if key in self._declared:
            start = self._declared[key]
            if start is None:  # never read, or printed where it is read
                return
            yield from self._line(f"{start} = {self._say.lane(node.value, 0)};", level)
            return
        lanes = lanes_of(node.value)
        if lanes == 1:
            place = self._say.address(node.buffer, node.indices, 0)
            yield from self._line(self._assignment(node, place, 0), level)
        else:
            yield from self._vector_store(node, lanes, level)

    def _vector_store(self, node: Node, lanes: int, level: int) -> Iterable[str]:
        """A loop over lanes where they look alike; all values first where they may be in place."""
        say, kind = self._say, c_type(dtype_of_buffer(node.buffer))
        aside = hash(node.buffer) in self._uses.parameters and self._uses.reads_memory(node.value)
        try:
            name = "lane"
            value, place = say.lane(node.value, name), say.address(node.buffer, node.indices, name)
            if not aside:
                yield from self._each_lane(self._assignment(node, place, name), lanes, level)
                return
            kept = self._fresh("v")
            yield from self._line(f"{kind} {kept}[{lanes}];", level)
            yield from self._each_lane(f"{kept}[{name}] = {value};", lanes, level)
            yield from self._each_lane(f"{place} = {kept}[{name}];", lanes, level)
        except NeedsNumber:
            values = [say.lane(node.value, i) for i in range(lanes)]
            if aside:
                kept = self._fresh("v")
                inner = ", ".join(values)
                yield from self._line(f"const {kind} {kept}[{lanes}] = {{{inner}}};", level)
                values = [f"{kept}[{i}]" for i in range(lanes)]
            for i, value in enumerate(values):
                yield from self._line(
                    f"{say.address(node.buffer, node.indices, i)} = {value};", level
                )

    def _assignment(self, node: Node, place: str, lane: int | str) -> str:
        """``place = value;``, or ``place += value;`` where the value is a sum with it."""
        value = node.value
        if (
            type(value).__name__ == "Add"
            and type(value.a).__name__ == "TensorLoad"
            and dtype_of(value) in ("int32", "int64", "float32")
            and self._say.lane(value.a, lane) == place
        ):
            return f"{place} += {self._say.lane(value.b, lane)};"
        return f"{place} = {self._say.lane(value, lane)};"

    def _each_lane(self, text: str, lanes: int, level: int) -> Iterator[str]:
        head = f"for (int lane = 0; lane < {lanes}; lane++)"
        yield from self._line(f"{head} {{", level)
        yield from self._line(text, level + 1)
        yield from self._line("}", level)

    def _bind(self, node: Node, level: int) -> Iterable[str]:
        var, value = node.var, node.value
        if not self._uses.counts[hash(var)]:
            return
        lanes = lanes_of(value)
        if lanes == 1 and type(value).__name__ in ("Var", "IntImm"):
            self._say.alias(var, value)
            return
        kind = c_type(dtype_of(value))
        if lanes == 1:
            text = self._say.scalar(value)
            name = self._fresh("t")
            yield from self._line(f"const {kind} {name} = {text};", level)
        else:
            texts = ", ".join(self._say.lane(value, i) for i in range(lanes))
            name = self._fresh("v")
            yield from self._line(f"const {kind} {name}[{lanes}] = {{{texts}}};", level)
        self._say.name(var, name)

    def _for(self, node: Node, level: int) -> Iterable[str]:
        step = 1 if node.step is None else int(node.step)
        if _is_constant(node.extent, 1):
            self._say.alias(node.loop_var, node.min)  # names are unique: no braces needed
            yield from self._block(node.body, level)
            return
        kind = c_type(dtype_of(node.loop_var))
        stem = _LOOPS[self._depth] if self._depth < len(_LOOPS) else f"i{self._depth}"
        end = Analyzer().simplify(node.min + node.extent)
        first, last = self._say.scalar(node.min), self._say.scalar(end)
        self._say.name(node.loop_var, stem)
        more = f"{stem}++" if step == 1 else f"{stem} += {step}"
        self._depth += 1
        yield from self._line(f"for ({kind} {stem} = {first}; {stem} < {last}; {more}) {{", level)
        yield from self._block(node.body, level + 1)
        yield from self._line("}", level)
        self._depth -= 1

    def _while(self, node: Node, level: int) -> Iterable[str]:
        yield from self._line(f"while ({self._say.scalar(node.condition)}) {{", level)
        yield from self._block(node.body, level + 1)
        yield from self._line("}", level)

    def _break(self, node: Node, level: int) -> Iterable[str]:
        return self._line("break;", level)

    def _continue(self, node: Node, level: int) -> Iterable[str]:
        return self._line("continue;", level)

    def _ifthenelse(self, node: Node, level: int) -> Iterable[str]:
        yield from self._line(f"if ({self._say.scalar(node.condition)}) {{", level)
        yield from self._block(node.then_case, level + 1)
        if node.else_case is not None:
            yield from self._line("} else {", level)
            yield from self._block(node.else_case, level + 1)
        yield from self._line("}", level)


def _is_constant(x: Node, value: int) -> bool:
    return type(x).__name__ == "IntImm" and int(x.value) == value


def dtype_of_buffer(buffer: Node) -> str:
    """Element dtype of a buffer."""
    return str(buffer.dtype).split("x")[0]


def _identifier(name: str) -> str:
    text = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    return f"_{text}" if text[:1].isdigit() else text


def _wrapped(line: str, level: int) -> str:
    if len(line) <= _WIDTH:
        return line
    indent = "    " * level
    return textwrap.fill(
        line.strip(),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
