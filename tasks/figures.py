"""Numbers as a person reads them."""

import math


def figure(value: float) -> str:
    """Four significant digits, thousands separated: `0.9661`, `12.35`, `51,234`, `1.235e+12`."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    size = abs(value)
    if size and not 1e-4 <= size < 1e9:
        return f"{value:.3e}"
    before = len(str(int(size))) if size >= 1 else 0
    after_zeros = -math.floor(math.log10(size)) - 1 if 0 < size < 1 else 0
    return f"{value:,.{max(0, 4 - before + after_zeros)}f}"


def score(r2: float) -> str:
    """R² with four decimals, and as many as it takes where four would read 1.0000."""
    if not math.isfinite(r2):
        return figure(r2)
    decimals = 4
    while r2 < 1 and decimals < 12 and f"{r2:.{decimals}f}".startswith("1."):
        decimals += 1
    return f"{r2:,.{decimals}f}" if abs(r2) < 1e6 else figure(r2)


def percent(share: float) -> str:
    return f"{figure(100 * share)} %" if math.isfinite(share) else figure(share)


def amount(count: int, unit: str) -> str:
    """`1 row`, `16,512 rows`; empty without a unit."""
    if not unit:
        return ""
    return f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count:,} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"


def compact(value: float) -> str:
    """Three digits and a letter, for where there is little room: `20.6k`."""
    # from where three digits would round to a thousand of the smaller unit
    for limit, unit, suffix in ((999.5e6, 1e9, "G"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def rows_of(count: int) -> str:
    """Rows as a name has them: `1 row`, `1,000 rows`, `16.5k rows`."""
    return amount(count, "rows") if count < 10_000 else f"{compact(count)} rows"
