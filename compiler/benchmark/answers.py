"""Measurements made by hand: what the program of ``--program`` printed on some device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effc.artifact import Artifact
from effc.benchmark.layers import layer_rows
from effc.benchmark.measurement import Measurement, Plan
from effc.benchmark.session import Result, Subject
from effc.errors import DeviceError, InternalError, ModelError, UsageError

__all__ = ["read_answers"]

DEVICE = "by hand"


def read_answers(artifact: Artifact, path: Path) -> Result:
    """The result that the answers in a file amount to, one line for each process.

    Answers with ``--profile`` give times of layers; as profiling slows inferences down, their
    times count only if there are no others.

    Raises:
        UsageError: There is no such file.
        ModelError: It holds something else, or answers of another model.
    """
    answers = _load(path)
    first = answers[0]
    try:
        plain = [answer for answer in answers if "steps_ns" not in answer] or answers
        rounds = [Measurement.of(answer) for answer in plain]
        period = first["period_ns"]
        plan = Plan(
            warmup=first["warmup"],
            fps=1e9 / period if period else None,
            window_s=1.0 if rounds[0].windows else None,
        )
        threads = int(first["threads"])
    except (DeviceError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "not what the benchmark program prints",
            where=str(path),
            got=getattr(error, "got", None) or repr(error),
            hint="run it with --machine",
        ) from error
    subject = Subject(
        artifact.path.stem, str(artifact.path), artifact.manifest, _over, DEVICE, threads
    )
    result = Result(subject, plan, rounds)
    for answer in answers:
        if "steps_ns" in answer:
            if len(answer["steps_ns"]) != len(artifact.manifest["steps"]):
                raise ModelError("measured with another model", where=str(path))
            result.layers = layer_rows(artifact.manifest, answer["steps_ns"])
    return result


def _over(words: Sequence[str], timeout_s: float) -> Mapping[str, Any]:
    raise InternalError("what was measured by hand is not measured again", got=list(words))


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        answers = [json.loads(line) for line in lines]
    except OSError as error:
        raise UsageError("cannot read the file", where=f"--answers {path}", got=error) from error
    except (ValueError, RecursionError) as error:
        raise ModelError("not JSON", where=str(path), got=error) from error
    if not answers or not all(isinstance(answer, dict) for answer in answers):
        raise ModelError("the file holds no answers", where=str(path))
    return answers
