"""Prints TIR expressions as C, lane by lane.

A vector has no C type: :meth:`Expressions.lane` gives one of its lanes, by number or by the name
of a loop variable. Three rules of C decide the form: signed values are shifted left and negated
as unsigned ones (otherwise undefined), arithmetic below 32 bits is done in ``int`` and cast back,
and operands of shifts and bit operations stand in parentheses (as ``-Wall`` wants).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tvm.target.codegen import llvm_get_intrinsic_name

from effc.c_source.half import dtype_of, in_float32, lanes_of
from effc.c_source.types import c_type, constant, short_name
from effc.errors import UnsupportedError

__all__ = ["Buffers", "Expressions", "NeedsNumber"]

Expr = Any  # tvm.tirx expressions have no useful static types
Lane = int | str

_ATOM, _UNARY, _MUL, _ADD, _SHIFT, _REL, _EQ, _BIT, _AND, _OR, _COND = range(16, 5, -1)
_PROMOTED = ("bool", "int8", "uint8", "int16", "uint16")
"""Types that C computes with as ``int``."""


class NeedsNumber(Exception):
    """A lane was asked for by name, but lanes differ in more than their number."""


class Text(NamedTuple):
    """C source of an expression and how tightly it binds."""

    text: str
    rank: int

    def within(self, rank: int) -> str:
        """The text as an operand of something that binds with ``rank``."""
        return self.text if self.rank >= rank else f"({self.text})"


_BINARY: dict[str, tuple[str, int]] = {
    "Add": ("+", _ADD),
    "Sub": ("-", _ADD),
    "Mul": ("*", _MUL),
    "Div": ("/", _MUL),
    "Mod": ("%", _MUL),
    "LT": ("<", _REL),
    "LE": ("<=", _REL),
    "GT": (">", _REL),
    "GE": (">=", _REL),
    "EQ": ("==", _EQ),
    "NE": ("!=", _EQ),
    "And": ("&&", _AND),
    "Or": ("||", _OR),
    "BitwiseAnd": ("&", _BIT),
    "BitwiseOr": ("|", _BIT),
    "BitwiseXor": ("^", _BIT),
    "LShift": ("<<", _SHIFT),
    "RShift": (">>", _SHIFT),
}
_LOGICAL = (_REL, _EQ, _AND, _OR)
# LLVM intrinsic -> function of <math.h> for double; float gets an "f" behind it
_MATH = {f"llvm.{name}": name for name in ("sqrt", "exp", "log", "fma")}
# LLVM intrinsic -> helper
_ROUNDING = {
    f"llvm.{name}": name for name in ("floor", "ceil", "trunc", "rint", "fabs", "copysign")
}


@dataclass
class Buffers:
    """Names of what a function can address.

    Attributes:
        names: C name by buffer.
        scalars: Buffers of one element that are plain variables.
        values: Expression by buffer, of those that are printed where they are used.
    """

    names: dict[int, str] = field(default_factory=dict)
    scalars: set[int] = field(default_factory=set)
    values: dict[int, Expr] = field(default_factory=dict)


class Expressions:
    """Expressions of one function.

    Attributes:
        variables: C text by TIR variable; of vectors the name of an array.
        buffers: Names of buffers.
        helpers: Functions of ``types.HELPERS`` that the text needs.
        headers: Standard headers that it needs.
    """

    def __init__(self) -> None:
        self.variables: dict[int, Text] = {}
        self.buffers = Buffers()
        self.helpers: set[str] = set()
        self.headers: set[str] = set()

    def name(self, variable: Expr, text: str) -> None:
        """Say what a variable is called."""
        self.variables[hash(variable)] = Text(text, _ATOM)

    def alias(self, variable: Expr, value: Expr) -> None:
        """Print ``value`` where the variable is used."""
        self.variables[hash(variable)] = self._lane(value, 0)

    def scalar(self, x: Expr) -> str:
        """An expression of one lane."""
        return self._lane(x, 0).text

    def lane(self, x: Expr, lane: Lane) -> str:
        """One lane of an expression.

        Raises:
            NeedsNumber: ``lane`` is a name and lanes have no common form.
            UnsupportedError: C has no such operation.
        """
        return self._lane(x, lane).text

    def address(self, buffer: Expr, indices: Sequence[Expr], lane: Lane) -> str:
        """An element of a buffer as an lvalue."""
        key = hash(buffer)
        name = self.buffers.names[key]
        if key in self.buffers.scalars:
            return name
        (index,) = indices
        return f"{name}[{self._lane(index, lane).text}]"

    def _lane(self, x: Expr, lane: Lane) -> Text:
        kind = type(x).__name__
        wide = in_float32(x)
        if wide is not None:
            return self._lane(wide, lane)
        if kind in _BINARY:
            return self._binary(x, lane, kind)
        rule = getattr(self, f"_{kind.lower()}", None)
        if rule is None:
            raise UnsupportedError("portable C has no such operation", got=f"{kind}: {x}")
        return rule(x, lane)  # type: ignore[no-any-return]

    def _intimm(self, x: Expr, lane: Lane) -> Text:
        value = int(x.value)
        text = constant(value, dtype_of(x))
        return Text(text, _UNARY if value < 0 else _ATOM)

    def _floatimm(self, x: Expr, lane: Lane) -> Text:
        text = constant(x.value, dtype_of(x))
        if text.lstrip("-") in ("INFINITY", "NAN"):
            self.headers.add("math.h")
        return Text(text, _UNARY if text.startswith("-") else _ATOM)

    def _var(self, x: Expr, lane: Lane) -> Text:
        text = self.variables[hash(x)]
        return text if lanes_of(x) == 1 else Text(f"{text.text}[{lane}]", _ATOM)

    def _tensorload(self, x: Expr, lane: Lane) -> Text:
        value = self.buffers.values.get(hash(x.source))
        if value is not None:
            (index,) = x.indices
            place = self._lane(index, lane).text
            return self._lane(value, int(place) if place.isdigit() else place)
        return Text(self.address(x.source, x.indices, lane), _ATOM)

    def _ramp(self, x: Expr, lane: Lane) -> Text:
        base, stride = self._lane(x.base, 0), int(x.stride)
        if isinstance(lane, int):
            step = lane * stride
            if step == 0:
                return base
            if type(x.base).__name__ == "IntImm":
                return Text(str(int(x.base.value) + step), _ATOM)
            return Text(f"{base.within(_ADD)} + {step}", _ADD)
        scaled = lane if stride == 1 else f"{stride} * {lane}"
        if base.text == "0":
            return Text(scaled, _ATOM if stride == 1 else _MUL)
        return Text(f"{base.within(_ADD)} + {scaled}", _ADD)

    def _broadcast(self, x: Expr, lane: Lane) -> Text:
        return self._lane(x.value, 0)

    def _shuffle(self, x: Expr, lane: Lane) -> Text:
        if not isinstance(lane, int):
            raise NeedsNumber
        index = int(x.indices[lane])
        for vector in x.vectors:
            if index < lanes_of(vector):
                return self._lane(vector, index)
            index -= lanes_of(vector)
        raise UnsupportedError("a shuffle names a lane that is not there", got=str(x))

    def _binary(self, x: Expr, lane: Lane, kind: str) -> Text:
        operator, rank = _BINARY[kind]
        dtype = dtype_of(x)
        if kind == "Mod" and dtype.startswith("float"):
            self.headers.add("math.h")
            return self._function("fmod", dtype, [x.a, x.b], lane)
        a, b = self._lane(x.a, lane), self._lane(x.b, lane)
        if rank == _SHIFT and type(x.b).__name__ in ("IntImm", "Broadcast"):
            b = Text(b.text.removeprefix("INT64_C(").rstrip("u)"), _ATOM)  # a plain count
        folded = _folded(kind, dtype, a, b)
        if folded is not None:
            return folded
        if kind in ("Add", "Sub") and b.text.startswith("-") and b.text[1:].isdigit():
            operator, b = "-+"[kind == "Sub"], Text(b.text[1:], _ATOM)
        if rank in (_SHIFT, _BIT):
            left, right = a.within(_UNARY), b.within(_UNARY)
        elif rank in _LOGICAL:
            outer = _ADD if rank in (_REL, _EQ) else _EQ
            left, right = a.within(outer), b.within(outer)
        else:
            left, right = a.within(rank), b.within(rank + 1)
        if kind == "Sub" and dtype in ("int32", "int64") and a.text in ("0", "INT64_C(0)"):
            return Text(f"({c_type(dtype)})(0u - (u{c_type(dtype)}){right})", _UNARY)
        if kind == "LShift" and (dtype in _PROMOTED or dtype in ("int32", "int64")):
            wide = "uint64_t" if dtype == "int64" else "uint32_t"
            return Text(f"({c_type(dtype)})(({wide}){left} << {right})", _UNARY)
        if kind == "Mul" and dtype == "uint16":
            left = f"(uint32_t){a.within(_UNARY)}"
        text = Text(f"{left} {operator} {right}", rank)
        if dtype in _PROMOTED and dtype != "bool" and rank not in _LOGICAL:
            return self._converted(text, dtype)
        return text

    def _not(self, x: Expr, lane: Lane) -> Text:
        return Text(f"!{self._lane(x.a, lane).within(_UNARY)}", _UNARY)

    def _min(self, x: Expr, lane: Lane) -> Text:
        return self._helper(f"min_{short_name(dtype_of(x))}", [x.a, x.b], lane)

    def _max(self, x: Expr, lane: Lane) -> Text:
        return self._helper(f"max_{short_name(dtype_of(x))}", [x.a, x.b], lane)

    def _select(self, x: Expr, lane: Lane) -> Text:
        return self._choice(x.condition, x.true_value, x.false_value, lane)

    def _choice(self, condition: Expr, yes: Expr, no: Expr, lane: Lane) -> Text:
        parts = [self._lane(p, lane).within(_COND + 1) for p in (condition, yes, no)]
        return Text(f"{parts[0]} ? {parts[1]} : {parts[2]}", _COND)

    def _cast(self, x: Expr, lane: Lane) -> Text:
        source, dest = dtype_of(x.value), dtype_of(x)
        value = self._lane(x.value, lane)
        if source == dest or (source in _PROMOTED and dest == "int32"):
            return value
        if source == "float16":
            value = self._call_helper("any_half_to_f32", [value])
        if dest == "float16":
            if source == "float64":
                return self._call_helper("half_from_f64", [value])
            single = value if source == "float32" else self._converted(value, "float32")
            return self._call_helper("half_from_f32", [single])
        if dest == "float32" and source == "float16":
            return value
        if dest == "bool":
            return Text(f"{value.within(_ADD)} != 0", _EQ)
        return self._converted(value, dest)

    def _converted(self, value: Text, dtype: str) -> Text:
        return Text(f"({c_type(dtype)}){value.within(_UNARY)}", _UNARY)

    def _call(self, x: Expr, lane: Lane) -> Text:
        name = str(x.op.name).split(".", 1)[-1]
        args = list(x.args)
        if name == "if_then_else":
            return self._choice(args[0], args[1], args[2], lane)
        if name == "likely":
            return self._lane(args[0], lane)
        if name in ("call_pure_extern", "call_extern"):
            return self._external(str(args[0].value), args[1:], lane)
        if name in ("call_llvm_pure_intrin", "call_llvm_intrin"):
            return self._intrinsic(_intrinsic_name(int(args[0].value)), args[1:], dtype_of(x), lane)
        rules: dict[str, Callable[[], Text]] = {
            "reinterpret": lambda: self._reinterpret(args[0], dtype_of(x), lane),
            "effc_maximum": lambda: self._extreme("max", args, lane),
            "effc_minimum": lambda: self._extreme("min", args, lane),
            "effc_rescale": lambda: self._rescale(args, lane),
            "effc_widen": lambda: self._helper("half_to_f32", args, lane),
            "fabs": lambda: self._helper(f"fabs_{short_name(dtype_of(x))}", args, lane),
            "isnan": lambda: self._external("isnan", args, lane),
            "bitwise_not": lambda: self._inverted(args[0], lane),
            "large_uint_imm": lambda: Text(
                constant(int(args[0].value) | int(args[1].value) << 32, dtype_of(x)), _ATOM
            ),
        }
        if name not in rules:
            raise UnsupportedError("portable C has no such operation", got=f"{name}: {x}")
        return rules[name]()

    def _rescale(self, args: Sequence[Expr], lane: Lane) -> Text:
        scaled, zero = self._helper("rescale", args[:3], lane), int(args[3])
        if not zero:
            return scaled
        return Text(f"{scaled.text} {'-' if zero < 0 else '+'} {abs(zero)}", _ADD)

    def _inverted(self, x: Expr, lane: Lane) -> Text:
        text = Text(f"~{self._lane(x, lane).within(_UNARY)}", _UNARY)
        return self._converted(text, dtype_of(x)) if dtype_of(x) in _PROMOTED else text

    def _extreme(self, helper: str, args: Sequence[Expr], lane: Lane) -> Text:
        """Keeps a NaN in the first operand: the helpers compare, and yield their second one else.

        They name each operand once, so that trees of them do not double with every level.
        """
        x, bound = args
        return self._helper(f"{helper}_{short_name(dtype_of(x))}", [bound, x], lane)

    def _intrinsic(self, name: str, args: Sequence[Expr], dtype: str, lane: Lane) -> Text:
        if name in _MATH:
            return self._function(_MATH[name], dtype, args, lane)
        if name in _ROUNDING:
            return self._helper(f"{_ROUNDING[name]}_{short_name(dtype)}", args, lane)
        if name.startswith("llvm.ctlz"):
            return self._helper("leading_zeros", args[:1], lane)
        raise UnsupportedError("portable C has no such instruction", got=name)

    def _function(self, name: str, dtype: str, args: Sequence[Expr], lane: Lane) -> Text:
        return self._external(name + ("f" if dtype == "float32" else ""), args, lane)

    def _external(self, symbol: str, args: Sequence[Expr], lane: Lane) -> Text:
        if any(dtype_of(a) == "float16" for a in args):
            raise UnsupportedError("portable C has no such function of float16", got=symbol)
        self.headers.add("math.h")
        inner = ", ".join(self._lane(a, lane).text for a in args)
        return Text(f"{symbol}({inner})", _ATOM)

    def _helper(self, name: str, args: Sequence[Expr], lane: Lane) -> Text:
        return self._call_helper(name, [self._lane(a, lane) for a in args])

    def _call_helper(self, name: str, args: Sequence[Text]) -> Text:
        self.helpers.add(name)
        return Text(f"{name}({', '.join(a.text for a in args)})", _ATOM)

    def _reinterpret(self, x: Expr, dtype: str, lane: Lane) -> Text:
        source = dtype_of(x)
        old, new = _bits(source), _bits(dtype)
        if old == new:
            value = self._lane(x, lane)
            if source == dtype:
                return value
            if source.startswith("float") or dtype.startswith("float"):
                if "float16" in (source, dtype):
                    return self._converted(value, "uint16") if dtype == "float16" else value
                return self._call_helper(f"{short_name(dtype)}_from_{short_name(source)}", [value])
            return self._converted(value, dtype)
        if source.startswith("float") or dtype.startswith("float"):
            raise UnsupportedError("portable C cannot read these bits so", got=str(x))
        if not isinstance(lane, int):
            raise NeedsNumber
        if old > new:
            each = old // new
            part = Text(
                f"(uint{max(old, 32)}_t){self._lane(x, lane // each).within(_UNARY)}", _UNARY
            )
            shift = lane % each * new
            if shift:
                part = Text(f"{part.text} >> {shift}", _SHIFT)
            return self._converted(part, dtype)
        return self._joined(x, dtype, lane)

    def _joined(self, x: Expr, dtype: str, lane: int) -> Text:
        """Lanes side by side, the first in the lowest bits."""
        old, new = _bits(dtype_of(x)), _bits(dtype)
        wide = f"uint{max(new, 32)}_t"
        parts = []
        for i in range(new // old):
            value = self._converted(self._lane(x, lane * (new // old) + i), f"uint{old}")
            text = f"({wide}){value.text}"
            parts.append(f"({text} << {i * old})" if i else text)
        joined = Text(" | ".join(parts), _BIT)
        return self._converted(joined, dtype)


def _folded(kind: str, dtype: str, a: Text, b: Text) -> Text | None:
    """Sums with 0 and products with 0 or 1: what loops of one iteration leave behind."""
    if not dtype.startswith("int"):
        return None
    if kind == "Add" and "0" in (a.text, b.text):
        return b if a.text == "0" else a
    if kind == "Mul" and "0" in (a.text, b.text):
        return Text("0", _ATOM)
    if kind == "Mul" and "1" in (a.text, b.text):
        return b if a.text == "1" else a
    return None


def _bits(dtype: str) -> int:
    return 8 if dtype == "bool" else int("".join(c for c in dtype if c.isdigit()))


def _intrinsic_name(number: int) -> str:
    return str(llvm_get_intrinsic_name(number))
