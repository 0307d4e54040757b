"""The digits example: the files in the repository belong together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def script() -> ModuleType:
    """``train.py`` as a module."""
    spec = importlib.util.spec_from_file_location("digits_train", EXAMPLE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_out_accuracy() -> None:
    with np.load(EXAMPLE / "digits_test.npz") as data:
        images, labels = data["x"], data["y"]
    session = ort.InferenceSession(EXAMPLE / "digits.onnx")
    answers = [session.run(None, {"image": image[None]})[0].argmax() for image in images]
    assert len(labels) == 360
    assert np.mean(np.array(answers) == labels) >= 0.98


def test_held_out_images_are_not_trained_on() -> None:
    train_x, _, test_x, _ = script().load()
    with np.load(EXAMPLE / "digits_test.npz") as data:
        np.testing.assert_array_equal(data["x"], test_x)
    assert len(train_x) + len(test_x) == 1797


def test_gradients_agree_with_differences() -> None:
    train = script()
    random = np.random.default_rng(1)
    parameters = {k: v.astype(np.float64) for k, v in train.initial(random).items()}
    x, y = random.random((3, 1, 8, 8)), np.array([1, 5, 9])
    _, gradient = train.gradients(parameters, x, y)
    for name, value in parameters.items():
        index = np.unravel_index(int(random.integers(value.size)), value.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = {**parameters, name: value.copy()}
            moved[name][index] += step
            ends.append(train.gradients(moved, x, y)[0])
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs(gradient[name][index] - slope) <= 1e-3 * max(abs(slope), 0.05), name


def test_exported_network_is_the_trained_one() -> None:
    train = script()
    random = np.random.default_rng(2)
    parameters = train.initial(random)
    model = train.export(parameters)
    image = random.random((1, 1, 8, 8)).astype(np.float32)
    label = np.array([3])
    loss, _ = train.gradients(parameters, image, label)
    session = ort.InferenceSession(model.SerializeToString())
    probabilities = session.run(None, {"image": image})[0]
    np.testing.assert_allclose(-np.log(probabilities[0, 3]), loss, rtol=1e-4)
