"""Row rules such as `price > 0`: a small language over columns, never Python's own `eval`.

Comparisons (chained ones and `in` lists too), `and`, `or`, `not`, `+ - * / %`, numbers, texts, and
`present(column)`. A name that is no identifier stands in backticks. A missing value makes a
comparison neither true nor false, and a row breaks a rule only where it is false, as with SQL's
CHECK.
"""

import ast
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.engine.errors import UserError, unknown_column

Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
# ISO 8601: a day, and perhaps a time of it and its zone
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?( ?(Z|[+-]\d{2}(:?\d{2})?))?)?$", re.ASCII
)


@dataclass(frozen=True)
class _Truth:
    """Three-valued: `true` and `false` are disjoint; a row in neither is unknown."""

    true: Bools
    false: Bools


@dataclass(frozen=True)
class Rule:
    """A parsed rule: its text and the columns that it reads."""

    text: str
    columns: tuple[str, ...]

    def broken(self, values: Mapping[str, Values]) -> Bools:
        """Rows (bool, (n,)) for which the rule is false.

        `values` holds float64 (numbers, times in seconds; NaN missing) or object texts (None
        missing) of (n,) by column.

        Raises:
            UserError: a text is compared with a number, or a text that should be a time is none.
        """
        tree, names = _parse(self.text)
        size = len(next(iter(values.values())))
        return _Evaluation(self.text, names, values, size).truth(tree).false


def parse_rule(text: str, known: Collection[str] | None = None) -> Rule:
    """Raises UserError where the text is no rule, or names a column that is not among `known`."""
    _, names = _parse(text)
    if not names:
        raise UserError(f"The rule {text!r} (data.rules) names no column.")
    for name in names.values():
        if known is not None and name not in known:
            raise unknown_column(name, "rule's", f"data.rules, {text!r}", known)
    return Rule(text, tuple(dict.fromkeys(names.values())))


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[ast.expr, dict[str, str]]:
    """The expression, and the column of each identifier in it."""
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        identifier = f"_column_{len(quoted)}_"
        quoted[identifier] = match.group(1)
        return identifier

    try:
        tree = ast.parse(re.sub(r"`([^`]+)`", stand_in, text).strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _not_a_rule(text, "it does not read as an expression") from None
    names: dict[str, str] = {}
    if not isinstance(tree, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Call):
        raise _not_a_rule(text, "it compares nothing")
    _check(tree, text, quoted, names)
    return tree, names


def _check(node: ast.expr, text: str, quoted: dict[str, str], names: dict[str, str]) -> None:
    match node:
        case ast.Name(id=name):
            names[name] = quoted.get(name, name)
        case ast.Constant(value=str() | bool() | int() | float()):
            pass
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                _check(part, text, quoted, names)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            _check(operand, text, quoted, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _check(left, text, quoted, names)
            _check(right, text, quoted, names)
        case ast.Compare(left=left, ops=ops, comparators=others):
            for sign in ops:
                if type(sign) not in _COMPARE and not isinstance(sign, ast.In | ast.NotIn):
                    raise _not_a_rule(text, "`is` is not an operator of rules")
            for part in [left, *others]:
                _check(part, text, quoted, names)
        case ast.Call(func=ast.Name(id="present"), args=[ast.Name() as column], keywords=[]):
            _check(column, text, quoted, names)
        case _:
            raise _not_a_rule(text, f"{ast.unparse(node)!r} is not part of the language")


def _not_a_rule(text: str, reason: str) -> UserError:
    return UserError(
        f"The rule {text!r} (data.rules) can't be used: {reason}. Rules are comparisons of "
        'columns, as in "price > 0", "low <= high", "state in [\'CA\', \'NY\']" or '
        '"present(price)"; put odd names in backticks.'
    )


@dataclass(frozen=True)
class _Evaluation:
    text: str
    names: Mapping[str, str]
    values: Mapping[str, Values]
    size: int

    def truth(self, node: ast.expr) -> _Truth:
        match node:
            case ast.BoolOp(op=ast.And(), values=parts):
                found = [self.truth(part) for part in parts]
                return _Truth(
                    np.logical_and.reduce([part.true for part in found]),
                    np.logical_or.reduce([part.false for part in found]),
                )
            case ast.BoolOp(values=parts):
                found = [self.truth(part) for part in parts]
                return _Truth(
                    np.logical_or.reduce([part.true for part in found]),
                    np.logical_and.reduce([part.false for part in found]),
                )
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.truth(operand)
                return _Truth(inner.false, inner.true)
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                found = [self.compare(sides[i], op, sides[i + 1]) for i, op in enumerate(ops)]
                return _Truth(
                    np.logical_and.reduce([part.true for part in found]),
                    np.logical_or.reduce([part.false for part in found]),
                )
            case ast.Call(args=[column]):
                there = ~pd.isna(self.operand(column))
                return _Truth(there, ~there)
        raise _not_a_rule(self.text, f"{ast.unparse(node)!r} is neither true nor false")

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Truth:
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List):
                raise _not_a_rule(self.text, "`in` needs a list")
            parts = [self.compare(left, ast.Eq(), item) for item in right.elts]
            any_of = _Truth(
                np.logical_or.reduce([part.true for part in parts]),
                np.logical_and.reduce([part.false for part in parts]),
            )
            return any_of if isinstance(op, ast.In) else _Truth(any_of.false, any_of.true)
        a, b = self.operand(left), self.operand(right)
        known = ~(pd.isna(a) | pd.isna(b))
        if a.dtype != b.dtype:
            a, b = self.alike(a, b), self.alike(b, a)
        outcome = np.zeros(self.size, dtype=bool)
        outcome[known] = np.asarray(_COMPARE[type(op)](a[known], b[known]), dtype=bool)
        return _Truth(known & outcome, known & ~outcome)

    def alike(self, values: Values, other: Values) -> Values:
        """Texts that meet numbers are read as times: numbers are what times are stored as.

        Only dates as ISO 8601 has them: pandas takes "2134" for a year, and "today" by the clock.
        """
        if values.dtype != object or other.dtype == object:
            return values
        seconds = {text: self.seconds(text) for text in dict.fromkeys(values[~pd.isna(values)])}
        return np.array([seconds.get(value, np.nan) for value in values], dtype=np.float64)

    def seconds(self, text: str) -> float:
        try:
            if not _DATE.match(text):
                raise ValueError
            time = pd.Timestamp(text)
        except ValueError:
            raise UserError(
                f"The rule {self.text!r} (data.rules) compares the text {text!r} with a number. A "
                "date or a time is written as '2026-01-31' or '2026-01-31 09:30'."
            ) from None
        return float((time if time.tzinfo else time.tz_localize("UTC")).timestamp())

    def operand(self, node: ast.expr) -> Values:
        match node:
            case ast.Name(id=name):
                return self.values[self.names[name]]
            case ast.Constant(value=str() as text):
                return np.full(self.size, text, dtype=object)
            case ast.Constant(value=value):
                return np.full(self.size, float(value))  # type: ignore[arg-type]
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return np.asarray(-self.number(inner))
            case ast.BinOp(left=left, op=op, right=right):
                with np.errstate(all="ignore"):
                    return np.asarray(_ARITHMETIC[type(op)](self.number(left), self.number(right)))
        raise _not_a_rule(self.text, f"{ast.unparse(node)!r} is not a value")

    def number(self, node: ast.expr) -> Values:
        values = self.operand(node)
        if values.dtype == object:
            raise _not_a_rule(self.text, f"{ast.unparse(node)!r} is text, not a number")
        return values
