"""What processors without a floating-point unit compute.

Floats may come in and go out, and single elements be computed with: that is a few operations per
element, which compilers' libraries do in integers. Products, pools, softmax and the like would
take a hundred times as long as 8-bit ones, so they are refused.
"""

from __future__ import annotations

from effc.devices.target import Target
from effc.kernels.region import Region

__all__ = ["float_refusal"]

_MOVEMENT = frozenset(
    (
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("BitCast", "GatherElements", "GatherND", "ReverseSequence", "Scatter", "ScatterElements"),
        *("ScatterND", "TensorScatter", "Trilu", "Insert", "ToQuads", "FromQuads"),
    )
)


def float_refusal(region: Region, target: Target) -> str | None:
    """Why a target cannot compute a region for lack of floats, or ``None``."""
    anchor = region.anchor
    if target.float_unit or anchor is None or anchor.op_type in _MOVEMENT:
        return None
    operands = [value for value in (*anchor.inputs, *anchor.outputs) if value is not None]
    floats = [value.dtype for value in operands if "float" in value.dtype]
    if not floats:
        return None
    return f"it is computed in {floats[0]}, and {target.name} has no floating-point unit"
