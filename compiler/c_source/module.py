"""Many stage functions as one piece of C source, with the helper functions that they call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effc.c_source.lower import lower_for_c
from effc.c_source.statements import FunctionPrinter
from effc.c_source.types import helper_sources
from effc.errors import UnsupportedError
from effc.kernels.template import Stage

__all__ = ["KernelSource", "print_stages"]


@dataclass(frozen=True)
class KernelSource:
    """Kernels as C.

    Attributes:
        headers: Standard headers to include.
        helpers: Definitions of helper functions.
        declarations: Declaration by symbol, without semicolon.
        functions: Definition by symbol.
        parameters: By symbol, dtype of what each parameter points to.
    """

    headers: tuple[str, ...]
    helpers: str
    declarations: Mapping[str, str]
    functions: Mapping[str, str]
    parameters: Mapping[str, tuple[str, ...]]


def print_stages(
    stages: Mapping[str, Stage], layers: Mapping[str, str] | None = None
) -> KernelSource:
    """Print stage functions that compute all of their units in one call.

    Args:
        stages: By C symbol.
        layers: What computes with each, for messages.

    Raises:
        UnsupportedError: A function computes what portable C has no means for.
        InternalError: TVM refuses a function.
    """
    helpers: set[str] = set()
    headers: set[str] = set()
    declarations, functions, parameters = {}, {}, {}
    for symbol, stage in stages.items():
        func = lower_for_c(symbol, stage.func, stage.extent)
        try:
            printer = FunctionPrinter(symbol, func)
        except UnsupportedError as error:
            where = (layers or {}).get(symbol, symbol)
            raise UnsupportedError(
                error.what,
                where=where,
                got=error.got,
                hint="rewrite these nodes, or compile for a core that computes so",
            ) from error
        declarations[symbol] = printer.signature
        functions[symbol] = printer.text()
        parameters[symbol] = printer.dtypes
        helpers |= printer.helpers
        headers |= printer.headers
    text = "\n".join(helper_sources(helpers))
    return KernelSource(tuple(sorted(headers)), text, declarations, functions, parameters)
