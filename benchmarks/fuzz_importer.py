"""Fuzz the importer: damaged models must import, or fail with a typed error.

Every case runs in a forked child with limits on memory and time. A case passes if
import and simplification succeed, or raise ``EffcError`` (other than
``InternalError``). Anything else - another exception, a signal, the limits - is
printed with its seed and saved.

    python benchmarks/fuzz_importer.py --cases 2000 --seed 1 --save found/ MODELS...
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto, helper

from effc.errors import EffcError, InternalError
from effc.frontend import import_model
from effc.passes.registry import simplify

MEMORY = 4 << 30
SECONDS = 20

Mutation = Callable[[onnx.ModelProto, random.Random], None]
ODD = (0, 1, -1, 2, 3, -2, 7, 255, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1)


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node)


def change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    """An odd number, another length or another type in an attribute."""
    node = _node(model, rng)
    if not node.attribute:
        node.attribute.append(helper.make_attribute(rng.choice(["axis", "group", "perm"]), 3))
        return
    attr = rng.choice(node.attribute)
    if attr.ints and rng.random() < 0.7:
        attr.ints[rng.randrange(len(attr.ints))] = rng.choice(ODD)
    elif attr.ints:
        attr.ints.append(rng.choice(ODD)) if rng.random() < 0.5 else attr.ints.pop()
    elif attr.type == AttributeProto.INT:
        attr.i = rng.choice(ODD)
    elif attr.type == AttributeProto.FLOAT:
        attr.f = rng.choice([float("nan"), float("inf"), 0.0, -1.0, 1e38])
    elif attr.type == AttributeProto.STRING:
        attr.s = rng.choice([b"", b"\xff\xfe", b"SAME_UPPER", b"nearest"])
    else:
        attr.type = rng.randrange(0, 15)


def drop_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    """An input reads another value."""
    node, other = _node(model, rng), _node(model, rng)
    names = list(other.output) + list(other.input) + ["", "nothing"]
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)


def change_inputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input and rng.random() < 0.5:
        del node.input[rng.randrange(len(node.input))]
    else:
        node.input.append(rng.choice(["", *node.input]) if node.input else "x")


def change_outputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if rng.random() < 0.5 and node.output:
        del node.output[-1]
    else:
        node.output.append(rng.choice(["", "more", *node.output]))


def change_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    schemas = onnx.defs.get_all_schemas()
    node = _node(model, rng)
    schema = rng.choice(schemas)
    node.op_type, node.domain = schema.name, schema.domain


def shuffle_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    rng.shuffle(copies)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def change_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    """An input's or output's declared shape or type."""
    value = rng.choice([*model.graph.input, *model.graph.output])
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    choice = rng.random()
    if dims and choice < 0.6:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(ODD)
    elif choice < 0.8:
        tensor.elem_type = rng.randrange(0, 28)
    else:
        dims.add().dim_value = rng.choice(ODD)


def change_tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    """A weight's dims, type, data or location."""
    tensors = list(model.graph.initializer)
    tensors += [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    choice = rng.randrange(5)
    if choice == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD)
    elif choice == 1:
        tensor.data_type = rng.randrange(0, 24)
    elif choice == 2:
        data = bytearray(tensor.raw_data)
        for _ in range(min(len(data), 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        kept = rng.randrange(len(data) + 1) if rng.random() < 0.3 else len(data)
        tensor.raw_data = bytes(data[:kept])
    elif choice == 3:
        tensor.data_location = TensorProto.EXTERNAL
        key = rng.choice(["location", "offset", "length"])
        text = rng.choice(["../../etc/passwd", "/etc/passwd", "-1", "x", "99999999999999"])
        tensor.external_data.add(key=key, value=text)
    else:
        tensor.dims.append(rng.choice(ODD))


def change_constant_integers(model: onnx.ModelProto, rng: random.Random) -> None:
    """A number in an int64 constant (shapes, pads, axes)."""
    tensors = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
    tensors += [
        a.t
        for n in model.graph.node
        for a in n.attribute
        if a.HasField("t") and a.t.data_type == TensorProto.INT64
    ]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    values = onnx.numpy_helper.to_array(tensor).copy()
    if values.size:
        values.reshape(-1)[rng.randrange(values.size)] = rng.choice(ODD)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def change_versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.3:
        model.ir_version = rng.choice([0, 1, 3, 99, -1])
    elif model.opset_import:
        model.opset_import[0].version = rng.choice([0, 1, 7, 9, 11, 13, 18, 20, 23, 28, 99])
    if rng.random() < 0.1:
        del model.opset_import[:]


def cut_graph(model: onnx.ModelProto, rng: random.Random) -> None:
    part = rng.choice(
        [model.graph.node, model.graph.initializer, model.graph.input, model.graph.output]
    )
    if len(part):
        del part[rng.randrange(len(part))]


MUTATIONS: tuple[Mutation, ...] = (
    change_attribute, change_attribute, drop_attribute, rewire, change_inputs, change_outputs,
    change_operator, shuffle_nodes, change_shape, change_tensor, change_constant_integers,
    change_constant_integers, change_versions, cut_graph,
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a model file."""
    choice = rng.random()
    if choice < 0.1:
        return data[: rng.randrange(len(data))]
    if choice < 0.25:
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 8, 64])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if model.graph.node:
            with contextlib.suppress(ValueError, TypeError):  # damaged beyond this mutation
                rng.choice(MUTATIONS)(model, rng)
    return bytes(model.SerializeToString())


def _shapes(data: bytes) -> dict[str, tuple[int, ...]]:
    """Small numbers for the dynamic dimensions of a model that can be read."""
    try:
        graph = onnx.ModelProto.FromString(data).graph
    except Exception:
        return {}
    weights = {t.name for t in graph.initializer}
    shapes = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and any(not d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else 2 for d in dims)
    return shapes


def attempt(data: bytes) -> str:
    """Import and simplify; returns the outcome's class."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        try:
            model = import_model(path, shapes=_shapes(data))
            simplify(model)
        except InternalError:
            raise
        except EffcError as error:
            return type(error).__name__
    return "imported"


def run_case(data: bytes) -> tuple[str, str]:
    """Run one case in a child: (outcome, detail); outcome starts with ! if it is a finding."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        code = 0
        try:
            text = attempt(data)
        except BaseException:
            text, code = traceback.format_exc(), 1
        os.write(writer, text.encode()[-60000:])
        os._exit(code)
    os.close(writer)
    chunks = []
    while chunk := os.read(reader, 65536):
        chunks.append(chunk)
    os.close(reader)
    text = b"".join(chunks).decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"!{'timeout' if name == 'SIGALRM' else name}", text
    if os.WEXITSTATUS(status):
        return "!exception", text
    return text, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files to damage")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="folder for findings")
    arguments = parser.parse_args()
    seeds = [p.read_bytes() for p in arguments.models if p.stat().st_size < 8 << 20]
    outcomes: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    for case in range(arguments.cases):
        rng = random.Random(f"{arguments.seed}/{case}")
        index = rng.randrange(len(seeds))
        data = mutate(seeds[index], rng)
        outcome, detail = run_case(data)
        outcomes[outcome] += 1
        if outcome.startswith("!"):
            lines = detail.strip().splitlines()
            name = arguments.models[index].name
            print(f"case {case} ({name}): {outcome[1:]} {lines[-1] if lines else ''}")
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                (arguments.save / f"{arguments.seed}-{case}.onnx").write_bytes(data)
                (arguments.save / f"{arguments.seed}-{case}.txt").write_text(detail)
    print(f"{arguments.cases} cases in {time.monotonic() - start:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"{count:7d}  {outcome}")
    return 1 if any(o.startswith("!") for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
