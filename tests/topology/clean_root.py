"""The image's file system without a container engine: the Containerfile's steps in a new Debian.

    python tests/topology/clean_root.py FOLDER [--python PREFIX] [--bind PATH]...

`debootstrap` makes a Debian in FOLDER (root is needed), PREFIX is a CPython 3.12 that is copied to
its /usr/local, as the base image has one there. Then every instruction of infra/Containerfile is
carried out: both stages in one root, as the second only copies from the first. Paths that pip needs
(a mirror of packages, its settings) are bound in. At the end the image's own command runs as its
own user, without root and without a network.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# what CPython links to, and the base image therefore has
LIBRARIES = [
    *("ca-certificates", "libbz2-1.0", "libffi8", "liblzma5", "libncursesw6", "libreadline8"),
    *("libsqlite3-0", "libssl3"),
]
MINUTES = 25


def instructions(text: str) -> list[tuple[str, str]]:
    """`(RUN, its command)` and the like, comments and continuations resolved."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in found]


class CleanRoot:
    """A root directory in which instructions are carried out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
            "DEVICE": "cpu",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        }
        self.work, self.user = "/", "0:0"
        self.command: list[str] = []

    def inside(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def run(self, command: list[str], *more: str) -> None:
        user, _, group = self.user.partition(":")
        change = ["chroot", f"--userspec={user}:{group}", str(self.folder), "env", "-C", self.work]
        subprocess.run(
            [*more, *change, *command], env=self.environment, check=True, timeout=MINUTES * 60
        )

    def carry_out(self, word: str, rest: str) -> None:
        print(f"{word} {rest[:110]}", flush=True)
        match word:
            case "RUN":
                self.run(["sh", "-c", rest])
            case "WORKDIR":
                self.work = rest
                self.inside(rest).mkdir(parents=True, exist_ok=True)
            case "ENV":
                for setting in shlex.split(rest):
                    name, _, value = setting.partition("=")
                    self.environment[name] = value.replace("$PATH", self.environment["PATH"])
            case "COPY" if not rest.startswith("--from"):
                *sources, target = rest.replace("${DEVICE}", "cpu").split()
                for source in sources:
                    self._copy(ROOT / source, target)
            case "USER":
                self.user = rest
            case "CMD":
                self.command = list(json.loads(rest))
            case "FROM" | "ARG" | "COPY" | "HEALTHCHECK" | "ENTRYPOINT":
                pass
            case _:
                raise ValueError(f"{word} is not known here")

    def _copy(self, source: Path, target: str) -> None:
        place = self.inside(f"{self.work}/{target}")
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / source.name if target.endswith("/") else place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.prefix))
    parser.add_argument("--bind", type=Path, action="append", default=[])
    given = parser.parse_args()
    folder = given.folder.absolute()
    debian = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(LIBRARIES)}",
        "bookworm",
        str(folder),
    ]
    subprocess.run(debian, check=True, timeout=MINUTES * 60)
    shutil.copytree(given.python, folder / "usr/local", symlinks=True, dirs_exist_ok=True)
    root = CleanRoot(folder)
    root.run(["ldconfig"])
    bound = [Path("/etc/resolv.conf"), *given.bind]
    mounted: list[Path] = []
    try:
        for path in bound:
            place = root.inside(str(path))
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            subprocess.run(["mount", "--bind", str(path), str(place)], check=True)
            mounted.append(place)
        for word, rest in instructions((ROOT / "infra" / "Containerfile").read_text()):
            root.carry_out(word, rest)
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", str(place)], check=True)
    shutil.rmtree(root.inside("/build"))
    root.environment["HOME"] = root.work
    root.run(["boostline", "--version"], "unshare", "--net")
    root.run([*root.command], "unshare", "--net")
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{size / 1e6:,.0f} MB in {folder}")


if __name__ == "__main__":
    main()
