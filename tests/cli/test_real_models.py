"""Real trained models with labelled data, where the shared data is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .conftest import Effc

DATA = Path(__file__).parents[2] / "../shared/data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the models of ../shared/data")


def test_keyword_spotting_keeps_every_answer(effc: Effc, tmp_path: Path) -> None:
    with np.load(DATA / "data" / "kws01_mfcc_int8.npz") as data:
        x = (data["x"].astype(np.float32) - data["zero_point"]) * data["scale"]
        np.savez(tmp_path / "kws.npz", x=x.astype(np.float32), y=data["y"].astype(np.int64))
    model = DATA / "models" / "mlperf_tiny_kws01_dscnn_fp32.onnx"
    answer = effc("compile", model, "--target", "host", "-o", "kws", "--json")
    assert answer.code == 0, answer.err
    assert min(o["snr_db"] for o in answer.json["verification"]["outputs"]) >= 90
    result = effc("verify", "kws", "--model", model, "--input", "kws.npz", "--json").json
    assert result["samples"] == 1000
    assert result["top1_agreement"] == 1.0
    assert result["accuracy"] > 0.91


def test_constant_and_recurrent_state(effc: Effc) -> None:
    model = DATA / "models" / "audio_silero_vad_16k_fp32.onnx"
    shapes = ["--shape", "input:1,576", "--shape", "state:2,1,128", "--constant", "sr=16000"]
    answer = effc("compile", model, "--target", "host", "-o", "vad", *shapes, "--json")
    assert answer.code == 0, answer.err
    assert min(o["snr_db"] for o in answer.json["verification"]["outputs"]) >= 90
    checked = effc("verify", "vad", "--model", model, "--json")
    assert checked.code == 0
    open_dimensions = effc("compile", model, "--target", "host", "-o", "open")
    assert open_dimensions.code == 2
    assert "--shape" in open_dimensions.err
