"""Pass framework: what a pass is, what it says about itself, how it is checked.

A pass takes a model as ``effc.frontend.import_model`` gives it, changes it in
place, and leaves it valid: any prefix of a pipeline yields a model that ONNX
Runtime can run. Each pass reports where it applied and where, and why, it
refused; that text feeds ``-v``, the report and ``effc explain``.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from effc.errors import InternalError
from effc.passes.graph import prune
from effc.passes.infer import static_shape

__all__ = ["Log", "Pass", "PassReport", "PassResult", "RewritePass"]


@dataclass
class Log:
    """Where a pass applied (node names), and where it refused and why."""

    applied: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class PassResult:
    """What one run of a pass did.

    Attributes:
        model: The model, changed in place.
        modified: Whether anything changed.
        applied: Names of the nodes where the pass applied.
        refused: (node name, why) where its pattern was present but a precondition failed.
    """

    model: ir.Model
    modified: bool
    applied: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


@dataclass
class PassReport:
    """What a pass did over all rounds of a pipeline."""

    name: str
    applied: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


class Pass(abc.ABC):
    """Base of all passes.

    Attributes:
        name: Verb first, as the file is called (``fold_batch_norm``).
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def call(self, model: ir.Model, log: Log) -> None:
        """Change the model in place and record each change in ``log``."""

    def requires(self, model: ir.Model) -> Iterable[str]:
        """All unmet preconditions, one sentence each."""
        return _violations(model.graph)

    def ensures(self, model: ir.Model) -> Iterable[str]:
        """All broken promises, one sentence each; looked at only if something changed."""
        return _violations(model.graph)

    def run(self, model: ir.Model) -> PassResult:
        """Check preconditions, run, check what was promised.

        Raises:
            InternalError: A precondition or a promise does not hold; all of them are listed.
        """
        unmet = list(self.requires(model))
        if unmet:
            raise InternalError(
                "the pass cannot run on this graph", where=self.name, got="; ".join(unmet[:10])
            )
        log = Log()
        self.call(model, log)
        if log.applied:
            broken = list(self.ensures(model))
            if broken:
                raise InternalError(
                    "the pass broke the graph", where=self.name, got="; ".join(broken[:10])
                )
        return PassResult(model, bool(log.applied), tuple(log.applied), tuple(log.refused))


class RewritePass(Pass):
    """A pass that looks at one node after the other.

    Attributes:
        ops: Operator types at which ``rewrite`` is called; empty means all.
    """

    ops: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        """Rewrite at ``node``.

        Returns:
            True if the graph was changed; False if the pattern is not here; a
            sentence if it is but cannot be rewritten.
        """

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        for node in graph:
            if node.graph is not graph or (self.ops and node.op_type not in self.ops):
                continue
            if node.domain:
                continue
            name = node.name or node.op_type
            outcome = self.rewrite(graph, node)
            if isinstance(outcome, str):
                log.refused.append((name, outcome))
            elif outcome:
                log.applied.append(name)
                prune(graph, node)


def _violations(graph: ir.Graph) -> list[str]:
    """Why a graph is not one that docs/ARCHITECTURE.md describes under "The graph"."""
    wrong: list[str] = []
    seen: set[str] = set()
    ready: set[int] = {id(v) for v in graph.initializers.values()}
    for value in graph.inputs:
        ready.add(id(value))
        _check_value(value, seen, wrong)
    for value in graph.initializers.values():
        if value.name in seen:
            wrong.append(f"two values are called {value.name}")
        seen.add(value.name or "")
    for node in graph:
        for operand in node.inputs:
            if operand is not None and id(operand) not in ready:
                wrong.append(f"{node.name} reads {operand.name} before it is there")
        for out in node.outputs:
            ready.add(id(out))
            if out.name:
                _check_value(out, seen, wrong)
    wrong += [f"output {v.name} is not computed" for v in graph.outputs if id(v) not in ready]
    return wrong


def _check_value(value: ir.Value, seen: set[str], wrong: list[str]) -> None:
    if not value.name or value.name in seen:
        wrong.append(f"two values are called {value.name}")
    seen.add(value.name or "")
    if static_shape(value) is None or value.dtype is None:
        wrong.append(f"{value.name} has no static type")
