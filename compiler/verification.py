"""Result of comparing a compiled model with its reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from effc.errors import QualityError
from effc.metrics import OutputError

__all__ = ["VariantCheck", "Verification"]


@dataclass(frozen=True)
class VariantCheck:
    """Result for a further version of the code.

    Attributes:
        name: Of the variant.
        outputs: Its errors against the reference.
        identical: All outputs have the bits of the first version's.
        same_integers: The integer ones have.
    """

    name: str
    outputs: list[OutputError]
    identical: bool
    same_integers: bool

    @property
    def ok(self) -> bool:
        """Within every limit, and integers do not depend on the version."""
        return self.same_integers and all(output.ok for output in self.outputs)

    def describe(self) -> dict[str, Any]:
        """For JSON and the manifest."""
        return {
            "name": self.name,
            "ok": self.ok,
            "identical": self.identical,
            "snr_db": min(output.describe()["snr_db"] for output in self.outputs),
        }


@dataclass
class Verification:
    """Result of a comparison.

    Attributes:
        device: Where the artifact ran.
        against: ``onnxruntime VERSION`` or ``golden outputs``.
        samples: Number of samples compared.
        outputs: One record per output.
        agreement: Share of samples with the same top-1 class, if labels were given.
        accuracy, reference_accuracy: Share of right classes of the artifact and the reference.
        notes: Limits that were lowered, and why; what was left out.
        variants: Further versions of the code, see ``effc.verify_variants``.
    """

    device: str
    against: str
    samples: int
    outputs: list[OutputError]
    agreement: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None
    notes: list[str] = field(default_factory=list)
    variants: list[VariantCheck] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every output within its limit, in every version of the code."""
        return all(output.ok for output in self.outputs) and all(v.ok for v in self.variants)

    def describe(self) -> dict[str, Any]:
        """For JSON and the manifest."""
        result: dict[str, Any] = {
            "ok": self.ok,
            "device": self.device,
            "against": self.against,
            "samples": self.samples,
            "outputs": [output.describe() for output in self.outputs],
            "notes": list(self.notes),
            "variants": [variant.describe() for variant in self.variants],
        }
        if self.agreement is not None:
            result |= {
                "top1_agreement": self.agreement,
                "accuracy": self.accuracy,
                "reference_accuracy": self.reference_accuracy,
            }
        return result

    def failure(self) -> QualityError:
        """What to raise for outputs beyond their limit; lists all of them."""
        differing = [v.name for v in self.variants if not v.same_integers]
        if differing:
            return QualityError(
                "versions of the code compute other integers than the first",
                where=f"variant {', '.join(differing)}",
                hint="nothing was written; please report this",
            )
        every = [*self.outputs, *(output for v in self.variants for output in v.outputs)]
        bad = [output for output in every if not output.ok]
        return QualityError(
            "the compiled model does not match the reference",
            where=", ".join(output.name for output in bad),
            expected="; ".join(
                "equal values" if o.limit_db is None else f"SNR >= {o.limit_db:.1f} dB" for o in bad
            ),
            got="; ".join(
                f"{o.mismatches} of {o.elements} elements differ"
                if o.mismatches
                else f"SNR {o.snr_db:.1f} dB, largest error {o.max_abs_error:.3g}"
                for o in bad
            ),
            hint="nothing was written; please report this, or pass --no-verify to look at the "
            "result",
        )
