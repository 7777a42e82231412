"""Arithmetic that a board's sheet writes down beside a derived figure, so that the figure can be checked against it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

__all__ = ["evaluate"]

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Returns what a formula of numbers, names, + - * / and parentheses comes to.

    Args:
        formula: such as `sm_count * gpu_clock_max_hz * 256`.
        values: by the names that it may use.

    Raises:
        ValueError: it is no such formula, uses a name that has no value, or divides by zero.
    """
    try:
        return _value(ast.parse(formula, mode="eval").body, values)
    except SyntaxError:
        raise ValueError(f"{formula!r} is no formula of numbers, names, + - * / and parentheses") from None
    except ZeroDivisionError:
        raise ValueError(f"{formula!r} divides by zero") from None


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id=name):
            if name not in values:
                raise ValueError(f"it uses {name}, which this file does not give")
            return values[name]
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(left, values), _value(right, values))
    raise ValueError(f"{ast.unparse(node)!r} is not allowed: only numbers, names, + - * / and parentheses are")
