"""docs/COVERAGE.md: what became of ONNX's backend node tests.

The page has one part for ``host``, whose failures are listed one by one, and a section per
further target, which says what that target refuses beyond ``host``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

__all__ = [
    "BAD",
    "BOUND",
    "COLUMNS",
    "CRASH",
    "GOOD",
    "INVALID",
    "PASS",
    "UNSUPPORTED",
    "WRONG",
    "Outcome",
    "write",
]

PASS, BOUND, UNSUPPORTED, INVALID, WRONG, CRASH = COLUMNS = (
    "pass",
    "pass, operand bound",
    "unsupported",
    "invalid",
    "wrong",
    "crash",
)
GOOD = (PASS, BOUND)
BAD = (WRONG, CRASH)

_WHY = "## What does not pass, and why"
_TARGET = "## Target `"


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        detail: The whole message of an error, or what differs.
        what: What an error says, without where.
        seconds: How long it took.
    """

    name: str
    operator: str
    status: str
    detail: str = ""
    what: str = ""
    seconds: float = field(default=0.0, compare=False)


def write(path: Path, target: str, outcomes: Sequence[Outcome], per_operator: int | None) -> None:
    """Write a target's part of the page; the other parts stay."""
    parts = re.split(r"(?m)^(?=## )", path.read_text("utf-8")) if path.exists() else ["", _WHY]
    targets = {part.splitlines()[0]: part for part in parts if part.startswith(_TARGET)}
    head, why = parts[0], parts[-1]
    if target == "host":
        head, why = _host(outcomes), _reasons(outcomes)
    else:
        targets[f"{_TARGET}{target}`"] = _section(target, outcomes, per_operator, why)
    path.write_text("".join([head, *(targets[key] for key in sorted(targets)), why]), "utf-8")


def _total(outcomes: Sequence[Outcome]) -> list[str]:
    total = Counter(outcome.status for outcome in outcomes)
    good = sum(total[status] for status in GOOD)
    bad = sum(total[status] for status in BAD)
    return [
        f"**{good} of {len(outcomes)} pass** ({total[PASS]} as they are, {total[BOUND]} with a",
        f'bound operand); {total[UNSUPPORTED]} end in the typed error "unsupported",',
        f'{total[INVALID]} in "invalid"; {bad} are wrong or crash.',
        "",
    ]


def _host(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "# Coverage: ONNX's backend node tests",
        "",
        f"Made by `python benchmarks/onnx_backend.py --write` with onnx {onnx.__version__}. Every",
        "case is compiled for `host`, loaded and run; nothing is simulated. Operands that decide",
        "a shape or the structure of the code (the target shape of Reshape, the k of TopK ...) are",
        "run-time inputs in these tests; a case that is refused for that is compiled again with",
        "them bound to their values (`constants=`), and counted on its own.",
        "",
        *_total(outcomes),
        "| operator | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    by_operator: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        by_operator[outcome.operator][outcome.status] += 1
    for operator, counts in sorted(by_operator.items()):
        row = " | ".join(str(counts[status] or "") for status in COLUMNS)
        lines.append(f"| {operator} | {row} |")
    return "\n".join([*lines, "", ""])


def _reasons(outcomes: Sequence[Outcome]) -> str:
    lines = [_WHY, "", "| case | outcome | reason |", "|---|---|---|"]
    lines += [
        f"| {o.name} | {o.status} | {_reason(o.detail)} |"
        for o in sorted(outcomes, key=lambda o: (o.operator, o.name))
        if o.status not in GOOD
    ]
    return "\n".join([*lines, ""])


def _section(
    target: str, outcomes: Sequence[Outcome], per_operator: int | None, host_refuses: str
) -> str:
    """One target: totals, and what it refuses of the cases that ``host`` passes."""
    option = f" --per-operator {per_operator}" if per_operator else ""
    which = f"at most {per_operator} cases of every operator" if per_operator else "every case"
    how = (
        "compiled by\nGCC (AddressSanitizer, UndefinedBehaviorSanitizer) and Clang "
        "(UndefinedBehaviorSanitizer) with\n`-std=c11 -Wall -Wextra -Werror -O2`, and run."
        if target == "c"
        else "run on the board that QEMU emulates."
    )
    refused: dict[str, dict[str, int]] = defaultdict(Counter)
    for o in outcomes:
        if o.status not in GOOD and f"| {o.name} |" not in host_refuses:
            refused[f"{o.status} | {_kind(o)}"][o.operator] += 1
    which = which.replace("1 cases", "one case")
    rows = [
        f"| {reason} | {', '.join(f'{name} {n}' for name, n in sorted(counts.items()))} |"
        for reason, counts in sorted(refused.items())
    ]
    heading = ["| outcome | reason | cases |", "|---|---|---|"] if rows else ["none is refused."]
    lines = [
        f"{_TARGET}{target}`",
        "",
        f"`python benchmarks/onnx_backend.py --target {target}{option} --write`: {which}, {how}",
        "",
        *_total(outcomes),
        "Of the cases that pass for `host`:",
        "",
        *heading,
        *rows,
    ]
    return "\n".join([*lines, "", ""])


def _kind(outcome: Outcome) -> str:
    """The reason without names: what an error says, or of refused operators the first refusal."""
    first = re.search(r"\(node [^)]*\): ([^;\n]*)", outcome.detail)
    return _cell(first.group(1) if first else outcome.what or outcome.detail)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _reason(detail: str) -> str:
    """One line; of many templates' refusals the one that names the operator."""
    text = _cell(detail.split("\n  hint:")[0])
    first = re.search(r"got (\w+) \(node ", text)
    if first is not None:
        named = text.rfind(f" {first.group(1)}: ")
        named = named if named >= 0 else text.rfind(f" {first.group(1)} on ")
        text = text[max(named, first.start()) :].strip()
    return text[:160].split("; the anchor")[0].split("; not a")[0]
