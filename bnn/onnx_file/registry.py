"""The rules of operators by their names."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from bnn.onnx_file.builder import Builder
from bnn.onnx_file.values import Value

# Of the builder, whose node is the operator, and its inputs, None where an optional one is not there.
Rule = Callable[[Builder, Sequence[Value | None]], Value | list[Value]]
R = TypeVar("R", bound=Rule)

RULES: dict[str, Rule] = {}
# Domains of QONNX, and of contributed operators of ONNX Runtime; those of ONNX itself have none.
QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
DOMAINS = ("", *QONNX_DOMAINS, "com.microsoft")


def operator(*names: str) -> Callable[[R], R]:
    """Decorate a function as the rule of operators."""

    def add(rule: R) -> R:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return add
