"""How a chain of elementwise values fits into the one pass of the kernels' epilogue."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np
from bnn_kernels.steps.fields import Float32
from bnn_kernels.steps.finish import EpilogueFields

from bnn.converter.graph.values import Add, Affine, Bend, Channelwise, Clamp, Value

Link = tuple[Value, Value | None]
FieldsT = TypeVar("FieldsT", bound=EpilogueFields)


def single(values: np.ndarray | None) -> Float32 | None:
    """Return float32 of float64 values, as a step takes them."""
    return None if values is None else values.astype(np.float32)


def _times(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a * b


def _plus(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a + b


@dataclass(frozen=True)
class EpilogueForm:
    """What `bnn_kernels.ops.epilogue` does: affine, norm, residual, bend, clamp, residual; vectors are float64 (C,)."""

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    norm_scale: np.ndarray | None = None
    norm_shift: np.ndarray | None = None
    residual: Value | None = None
    residual_is: Literal["before", "after"] | None = None
    pre: np.ndarray | None = None
    slope: np.ndarray | None = None
    post: np.ndarray | None = None
    low: float = -math.inf
    high: float = math.inf

    def of(self, step: FieldsT) -> FieldsT:
        """Return the fields of a step with this epilogue; scale and shift are the step's to join with its own."""
        return replace(
            step,
            residual=self.residual_is,
            low=self.low,
            high=self.high,
            norm_scale=single(self.norm_scale),
            norm_shift=single(self.norm_shift),
            pre=single(self.pre),
            slope=single(self.slope),
            post=single(self.post),
        )


def fit(chain: Sequence[Link]) -> EpilogueForm | None:
    """Return the form of a chain, first computed first, or None if it takes more than one pass.

    Each link is a value and, of a sum, the operand that comes from elsewhere.
    """
    form: dict[str, Any] = {}
    stage = 0  # 0 affine, 1 residual, 2 pre, 3 slope, 4 post, 5 clamp, 6 residual behind
    for value, other in chain:
        if isinstance(value, Add):
            if "residual" in form:
                return None
            place, stage = ("before", 1) if stage < 1 else ("after", 6)
            form |= {"residual": other, "residual_is": place}
            continue
        if not isinstance(value, Channelwise) or stage == 6:
            return None
        part = value.form
        if isinstance(part, Affine) and stage == 0:
            # A second batch norm is joined with the first one.
            slot = "norm_" if part.is_norm or "norm_scale" in form else ""
            before = form.get(f"{slot}shift")
            shift = before if before is None else _times(before, part.scale)
            form |= {f"{slot}scale": _times(form.get(f"{slot}scale"), part.scale)}
            form |= {f"{slot}shift": _plus(shift, part.shift)}
        elif isinstance(part, Affine) and part.scale is None and part.shift is not None and stage in (1, 3):
            form |= {"pre": -part.shift} if stage == 1 else {"post": part.shift}
            stage += 1
        elif isinstance(part, Bend) and stage < 3 and (part.pre is None or stage < 2):
            form |= {"slope": part.slope, "post": part.post}
            form |= {"pre": part.pre} if part.pre is not None else {}
            stage = 3 if part.post is None else 4
        elif isinstance(part, Clamp) and stage < 5:
            form |= {"low": part.low, "high": part.high}
            stage = 5
        else:
            return None
    return EpilogueForm(**form)


def followed(first: Sequence[Link], second: Sequence[Link]) -> EpilogueForm | None:
    """Return the form of two chains one after the other; None if one pass is not enough, or would round otherwise."""
    together = fit([*first, *second])
    forms = [fit(chain) for chain in (first, second) if chain]
    if together is None or None in forms:
        return None
    for part in fields(EpilogueForm):
        given = [value for form in forms if _is_set(value := getattr(form, part.name), part.default)]
        if len(given) > 1 or (given and not np.array_equal(getattr(together, part.name), given[0])):
            return None
    return together


def _is_set(value: Any, unset: Any) -> bool:
    return value is not None and not (isinstance(value, float) and value == unset)
