"""A fixed, varied sample of ONNX's backend node tests through real artifacts.

The whole suite: ``python benchmarks/onnx_backend.py`` (docs/COVERAGE.md).
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from backend_cases import Case, cases
from onnx_backend import run_case


@cache
def collected() -> dict[str, Case]:
    return {case.name: case for case in cases((*PASSING, *BOUND, *REFUSED))}


PASSING = (
    "test_abs", "test_argmax_default_axis_example", "test_averagepool_2d_ceil",
    "test_attention_4d_gqa", "test_batchnorm_example_training_mode", "test_bitshift_left_uint16",
    "test_cast_FLOAT_to_FLOAT16", "test_clip_default_inbounds", "test_concat_2d_axis_1",
    "test_conv_with_autopad_same", "test_convinteger_with_padding", "test_convtranspose_3d",
    "test_deform_conv_with_mask_bias", "test_depthtospace_crd_mode_example", "test_det_2d",
    "test_dynamicquantizelinear", "test_einsum_batch_matmul", "test_gather_negative_indices",
    "test_gathernd_example_int32_batch_dim1", "test_gelu_tanh_1", "test_gemm_all_attributes",
    "test_gridsample_bicubic", "test_gru_with_initial_bias", "test_hardmax_axis_1",
    "test_layer_normalization_3d_axis1_epsilon", "test_logsoftmax_axis_0", "test_lrn",
    "test_lstm_with_peepholes", "test_maxpool_with_argmax_2d_precomputed_pads",
    "test_matmul_3d", "test_mish", "test_nllloss_NCd1d2_with_weight_reduction_mean",
    "test_pow_bcast_array", "test_qlinearconv", "test_quantizelinear_axis",
    "test_rms_normalization_3d_axis1_epsilon", "test_roialign_aligned_true",
    "test_rotary_embedding_interleaved", "test_scan9_sum", "test_scatternd_add",
    "test_sce_mean_weight_ii_3d", "test_simple_rnn_batchwise", "test_softmax_axis_2",
    "test_transpose_all_permutations_4", "test_tril_neg", "test_where_long_example",
)  # fmt: skip

BOUND = (
    "test_center_crop_pad_crop_and_pad", "test_col2im_pads", "test_cumsum_2d_axis_1",
    "test_dft", "test_edge_pad", "test_expand_dim_changed", "test_onehot_with_axis",
    "test_reduce_log_sum_exp_keepdims_random", "test_reshape_reordered_all_dims",
    "test_resize_downsample_sizes_cubic", "test_slice", "test_tile_precomputed", "test_top_k",
)  # fmt: skip

REFUSED = (
    "test_bernoulli", "test_identity_sequence", "test_nonmaxsuppression_two_classes",
    "test_strnormalizer_nostopwords_nochangecase", "test_training_dropout_default",
    "test_unique_sorted_without_axis",
)  # fmt: skip

AS_SOURCE = (
    "test_bitshift_left_uint16", "test_deform_conv_with_mask_bias", "test_lstm_with_peepholes",
    "test_maxpool_with_argmax_2d_precomputed_pads", "test_qlinearconv", "test_scatternd_add",
)  # fmt: skip

ON_BOARD = ("test_attention_4d_gqa", "test_qlinearconv", "test_softmax_axis_2")


@pytest.mark.parametrize("name", PASSING)
def test_passes(name: str) -> None:
    outcome = run_case(collected()[name])
    assert (outcome.status, outcome.detail) == ("pass", "")


@pytest.mark.parametrize("name", BOUND)
def test_passes_with_a_bound_operand(name: str) -> None:
    outcome = run_case(collected()[name])
    assert (outcome.status, outcome.detail) == ("pass, operand bound", "")


@pytest.mark.parametrize("name", REFUSED)
def test_ends_in_a_typed_error(name: str) -> None:
    assert run_case(collected()[name]).status == "unsupported"


@pytest.mark.parametrize("name", AS_SOURCE)
def test_passes_as_c_source(name: str) -> None:
    """By GCC and by Clang, with sanitizers."""
    outcome = run_case(collected()[name], "c")
    assert (outcome.status, outcome.detail) == ("pass", "")


@pytest.mark.parametrize("name", ON_BOARD)
def test_passes_on_an_emulated_board(name: str) -> None:
    outcome = run_case(collected()[name], "cortex-m4")
    assert (outcome.status, outcome.detail) == ("pass", "")


def test_what_no_microcontroller_computes_is_refused_with_its_layer() -> None:
    outcome = run_case(collected()["test_softmax_axis_2"], "cortex-m0plus")
    assert outcome.status == "unsupported"
