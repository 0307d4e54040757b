"""Inputs to run a model on: generated ones, and those of an ``.npz`` file.

Generated inputs depend on the input's name, shape and dtype only, on every machine
and with every NumPy: the generator is SplitMix64 (Steele, Lea, Flood: Fast
splittable pseudorandom number generators, OOPSLA 2014), written out here.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from effc.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Arrays",
    "Dataset",
    "Tensor",
    "generate",
    "index_limits",
    "load_inputs",
    "load_samples",
    "numpy_dtype",
    "read_npz",
    "write_npz",
]

Arrays = dict[str, np.ndarray]
"""Tensors by name."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""Of the members of written files: equal arrays give equal bytes."""


@dataclass(frozen=True)
class Tensor:
    """Name, dtype and static shape of a model input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Tensor:
        """From an entry of ``inputs`` or ``outputs`` of a manifest."""
        return cls(str(entry["name"]), str(entry["dtype"]), tuple(map(int, entry["shape"])))


@dataclass(frozen=True)
class Dataset:
    """Samples to run one after the other.

    Attributes:
        samples: Inputs of each run.
        labels: Class per run, ``None`` if unknown; one run may hold a batch.
        count: Number of samples, without the padding of the last batch.
    """

    samples: Sequence[Arrays]
    labels: np.ndarray | None = None
    count: int = 1


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of a name; ``bfloat16`` comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


def _splitmix64(seed: int, count: int) -> np.ndarray:
    """``count`` uniform 64-bit numbers."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def generate(
    inputs: Sequence[Tensor], limits: Mapping[str, int] | None = None, seed: int = 0
) -> Arrays:
    """Make plausible inputs.

    Floats are uniform in [-1, 1); 8-bit integers use their whole range without 0;
    wider ones lie in [1, 16), or in [0, limit) where ``limits`` knows that they index
    something; masks are all ones. Zero is left out where it could be a divisor.

    Args:
        inputs: What to generate.
        limits: Exclusive upper bound by input name, see :func:`index_limits`.
        seed: Another number gives other inputs.
    """
    return {t.name: _generate(t, (limits or {}).get(t.name), seed) for t in inputs}


def _generate(tensor: Tensor, limit: int | None, seed: int) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    bits = _splitmix64(int.from_bytes(digest[:8], "little"), prod(tensor.shape))
    dtype = numpy_dtype(tensor.dtype)
    if tensor.dtype == "bool":
        values: np.ndarray = (bits >> np.uint64(63)).astype(bool)
    elif dtype.kind in "iu":
        low, high = (1, 16) if dtype.itemsize > 1 else _byte_range(dtype)
        if "mask" in tensor.name.lower():
            low, high = 1, 2
        elif limit is not None:
            low, high = 0, max(limit, 1)
        span = (bits >> np.uint64(33)) % np.uint64(high - low)
        values = span.astype(np.int64) + low
        if low < 0:
            values[values == 0] = 1
    else:
        values = (bits >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return values.reshape(tensor.shape).astype(dtype)


def _byte_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return (info.min, info.max + 1) if info.min else (1, info.max + 1)


_THROUGH = frozenset(
    {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
)
_INDEXED = {"Gather": 1, "GatherElements": 1}


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """Exclusive upper bounds of integer inputs that index a constant table."""
    graph = model.graph
    tables = {t.name: tuple(t.dims) for t in graph.initializer}
    source = {v.name: v.name for v in graph.input}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _THROUGH and node.input and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        position = _INDEXED.get(node.op_type)
        if position is None or len(node.input) <= position:
            continue
        origin, shape = source.get(node.input[position]), tables.get(node.input[0])
        if origin is None or not shape:
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        size = shape[axis] if -len(shape) <= axis < len(shape) else 1
        limits[origin] = min(limits.get(origin, size), size)
    return limits


def load_inputs(source: Path | Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> Dataset:
    """Read samples: arrays by input name, or ``x`` (stacked) and ``y`` (labels).

    Args:
        source: ``.npz`` file, or arrays as in one.
        inputs: Of the model.

    Raises:
        UsageError: The file is missing.
        ModelError: It is no ``.npz``, or names, shapes or dtypes do not fit the model.
    """
    where = "inputs" if isinstance(source, Mapping) else str(source)
    arrays = dict(source) if isinstance(source, Mapping) else read_npz(source)
    names = [t.name for t in inputs]
    stacked = set(arrays) <= {"x", "y"} and "x" in arrays and len(inputs) == 1
    if stacked and not (names == ["x"] and arrays["x"].shape == inputs[0].shape):
        return _stacked(where, arrays, inputs[0])
    _require_names(where, arrays, inputs)
    return Dataset([{t.name: _fit(where, arrays[t.name], t) for t in inputs}])


def load_samples(source: Path | Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> Dataset:
    """Calibration samples: ``x`` stacked for the only input, or stacked arrays by input name.

    Of an array by name, the leading dimension counts samples; one of the input's own shape is
    one run.

    Args:
        source: ``.npz`` file, or arrays as in one. Labels ``y`` are not looked at.
        inputs: Of the model.

    Raises:
        UsageError: The file is missing.
        ModelError: It is no ``.npz``, or names, shapes or dtypes do not fit the model; NaN.
    """
    where = "calibration" if isinstance(source, Mapping) else str(source)
    arrays = dict(source) if isinstance(source, Mapping) else read_npz(source)
    names = [t.name for t in inputs]
    if "y" not in names:
        arrays.pop("y", None)
    if len(inputs) == 1 and names[0] not in arrays and "x" in arrays:
        arrays = {names[0]: arrays["x"]}
    _require_names(where, arrays, inputs)
    for name in names:
        _refuse_nan(f"{where}: {name}", arrays[name])
    parts = [_stacked(where, {"x": arrays[t.name]}, t) for t in inputs]
    if len({len(part.samples) for part in parts}) > 1:
        raise ModelError(
            "inputs have different numbers of samples",
            where=where,
            got=", ".join(f"{n}: {part.count}" for n, part in zip(names, parts, strict=True)),
        )
    merged = [
        {name: array for one in samples for name, array in one.items()}
        for samples in zip(*(part.samples for part in parts), strict=True)
    ]
    return Dataset(merged, None, parts[0].count)


def _refuse_nan(where: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and (count := int(np.isnan(array).sum())):
        raise ModelError(
            "samples hold NaN", where=where, got=f"{count} of {array.size} values are NaN"
        )


def _require_names(where: str, arrays: Arrays, inputs: Sequence[Tensor]) -> None:
    names = [t.name for t in inputs]
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names and name not in ("x", "y")]
    if missing:
        raise ModelError(
            "inputs of the model are missing",
            where=where,
            expected=", ".join(map(_describe, inputs)),
            got=", ".join(arrays) or "no arrays",
        )
    if unknown:
        raise ModelError(
            "arrays that the model does not take",
            where=where,
            expected=", ".join(names),
            got=", ".join(unknown),
        )


def read_npz(path: Path) -> Arrays:
    """All arrays of an ``.npz`` file.

    Raises:
        UsageError: The file is missing.
        ModelError: It is no ``.npz``.
    """
    if not path.exists():
        raise UsageError("no such file", where=str(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _known(archive[name]) for name in archive.files}
    except (
        AttributeError,  # a single array, not an archive
        TypeError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        KeyError,
    ) as error:
        raise ModelError("not a readable .npz file", where=str(path), got=str(error)) from error


def _known(array: np.ndarray) -> np.ndarray:
    """NumPy's format knows bfloat16 only as two bytes."""
    return array.view(numpy_dtype("bfloat16")) if array.dtype == np.dtype("V2") else array


def write_npz(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Like ``numpy.savez_compressed``, for arrays of any name and with fixed dates."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _stacked(path: str, arrays: Arrays, tensor: Tensor) -> Dataset:
    x = arrays["x"]
    y = arrays.get("y")
    batch = tensor.shape[0] if tensor.shape else 1
    if x.shape[1:] == tensor.shape[1:] and x.ndim >= 1:
        per_sample = 1
    elif x.shape[1:] == tensor.shape:  # every sample has its own batch axis
        per_sample = batch
    else:
        raise ModelError(
            "the samples have another shape than the model's input",
            where=f"{path}: x",
            expected=f"(N, {', '.join(map(str, tensor.shape[1:]))})",
            got=x.shape,
        )
    if len(x) == 0 or (y is not None and y.shape != (len(x),)):
        raise ModelError(
            "needs samples x and as many labels y",
            where=path,
            got=f"x {x.shape}, y {None if y is None else y.shape}",
        )
    flat = x.reshape(-1, *tensor.shape[1:]) if per_sample > 1 else x
    chunks = list(_batches(flat, batch))
    samples = [{tensor.name: _fit(path, chunk.reshape(tensor.shape), tensor)} for chunk in chunks]
    return Dataset(samples, y, len(flat))


def _batches(x: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(x), size):
        chunk = x[start : start + size]
        if len(chunk) < size:  # fill the last batch with copies of its first sample
            chunk = np.concatenate([chunk, np.repeat(chunk[:1], size - len(chunk), axis=0)])
        yield chunk


def _fit(path: str, array: np.ndarray, tensor: Tensor) -> np.ndarray:
    dtype = numpy_dtype(tensor.dtype)
    if array.shape != tensor.shape or not np.can_cast(array.dtype, dtype, "safe"):
        raise ModelError(
            "an array does not fit the model's input",
            where=f"{path}: {tensor.name}",
            expected=_describe(tensor),
            got=f"{array.dtype} {array.shape}",
            hint=f"convert it first: array.astype('{tensor.dtype}')"
            if array.shape == tensor.shape
            else None,
        )
    return np.ascontiguousarray(array, dtype=dtype).reshape(tensor.shape)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype} {tensor.shape}"
