"""What is worth measuring on a GPU machine, as a table: python -m tests.gpu (tests/gpu.sh)

Every step is a process of its own with a limit, so that one that fails leaves the others; all of
them end within `--minutes`. The exit status is 1 where one failed or something is not as it should
be. With `--device cpu` and few rows the same steps run without a GPU, to try them out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

Found = dict[str, Any]

R2_APART = 0.002
LEAST_S = 5.0  # a step with less time left is not begun
ends = float("inf")  # when all steps must be done, by time.monotonic()
wrong: list[str] = []


def step(name: str, limit_s: float, *arguments: str) -> Found:
    """The JSON that `python -m ARGUMENTS` prints last, or why there is none."""
    print(f"… {name}", file=sys.stderr, flush=True)
    began = time.monotonic()
    limit_s = min(limit_s, ends - began)
    if limit_s < LEAST_S:
        return {"failed": "no time left for it (--minutes)"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit_s:.0f} s"}
    wall = time.monotonic() - began
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": last}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "wall": wall}


def show(name: str, found: Found) -> None:
    if "failed" in found:
        wrong.append(f"{name} failed")
        print(f"{name:<34} FAILED: {found['failed']}", flush=True)
        return
    times = found["seconds"]
    parts = ", ".join(f"{key} {value:.2f}" for key, value in times.items() if key != "total")
    total = f"{times['total']:9.2f} s" if "total" in times else " " * 11
    r2 = f"  R² {found['r2']:.4f}" if "r2" in found else ""
    print(f"{name:<34}{total}{r2}  {found.get('device', ''):<7} {parts}", flush=True)


def compare(title: str, one: Found, other: Found, what: str = "total") -> None:
    if "failed" not in one and "failed" not in other:
        ratio = one["seconds"][what] / other["seconds"][what]
        print(f"{title:<34}{ratio:9.2f} ×", flush=True)


def same_bytes(title: str, one: Found, other: Found) -> None:
    if "failed" not in one and "failed" not in other:
        same = one["sha256"] == other["sha256"]
        check(same, f"{title}: the model has other bytes")
        print(f"{title:<34}{'the same' if same else 'OTHER'} bytes", flush=True)


def external(whole: Found, engine: str, folder: str, kind: str, *settings: str) -> None:
    """The same training with its bins outside of the memory that it usually takes."""
    outside = step("external memory", 120, engine, folder, kind, *settings)
    show(f"external memory, {' '.join(settings)}", outside)
    notes = outside.get("notes", ())
    print(*notes, sep="\n")
    if "failed" not in outside:
        check(any("external memory" in note for note in notes), "all bins were in memory")
    same_bytes("external memory", outside, whole)


def check(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        wrong.append(otherwise)


def gpu_name() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "no nvidia-smi here"
    return done.stdout.strip() or done.stderr.strip()


def main() -> int:
    global ends  # noqa: PLW0603
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--more-rows", type=int, default=100_000_000, help="0 for none")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    # 80M train rows take 5.1 GB beside their bins, 2.2 GB of bins, and 1 GB for four pages
    parser.add_argument("--gpu-limit", default="8.75GB", help="less than --more-rows take")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all steps together")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    device, rows = options.device, options.rows
    kind = "cuda" if device == "cuda" else "local"
    engine, bare = "tests.gpu.engine", "tests.gpu.bare"
    print(f"{gpu_name()} · {os.cpu_count()} cores · {time.strftime('%Y-%m-%d %H:%M')}")
    print("Steps in seconds; reading is from the page cache, as the table was just written.")
    folder = Path(mkdtemp(prefix="boostline-gpu-"))
    try:
        small = str(folder / "small")
        show(f"write {rows:,}", step("write", 60, "tests.gpu.table", small, str(rows), device))
        read = step("reading", 60, "tests.gpu.reading", small, device)
        show("reading all of it", read)
        if "failed" not in read:
            print(
                f"{'Parquet read from the page cache':<34}{read['gb_per_s']:9.2f} GB/s", flush=True
            )
        script = step("bare script", 60, bare, small, device, "100")
        show(f"bare script, {rows:,}", script)
        whole = on_small = step("engine", 90, engine, small, kind)
        show(f"engine, {rows:,}", whole)
        compare("engine / bare script", whole, script)
        limits = ["cluster.gpu_memory_limit=4GB"] if device == "cuda" else []
        external(whole, engine, small, kind, "cluster.external_memory=always", *limits)
        killed = step("a killed worker", 90, engine, small, kind, "kill", "cluster.recoveries=2")
        show(f"a killed worker, {killed.get('recoveries', 0)} lost", killed)
        check("failed" in killed or killed["recoveries"] > 0, "no worker was lost")
        same_bytes("a killed worker", killed, whole)
        forest = step("forest", 60, "tests.gpu.forest", device, str(rows))
        show("predicting by", forest)
        if options.more_rows:
            large = str(folder / "large")
            more = options.more_rows
            made = step("write", 120, "tests.gpu.table", large, str(more), device)
            show(f"write {more:,}", made)
            script = step("bare script", 120, bare, large, device, "100")
            show(f"bare script, {more:,}", script)
            whole = step("engine", 200, engine, large, kind)
            show(f"engine, {more:,}", whole)
            compare("engine / bare script", whole, script)
            if device == "cuda":
                external(
                    whole, engine, large, kind, f"cluster.gpu_memory_limit={options.gpu_limit}"
                )
        if device == "cuda":  # the longest comes last
            slow = step("engine on 2 cores", 200, engine, small, "local", "cluster.threads=1")
            show("engine on 2 CPU cores", slow)
            compare("2 cores / GPU", slow, on_small)
            if "failed" not in slow and "failed" not in on_small:
                apart = abs(slow["r2"] - on_small["r2"])
                check(apart <= R2_APART, f"R² of GPU and CPU are {apart:.5f} apart")
                print(f"{'R² apart':<34}{apart:9.5f}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for each in wrong:
        print(f"WRONG: {each}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
