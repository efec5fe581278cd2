"""What `data.source` names: which format, and which files in which order."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec

from tasks.engine.config import DEMO, DataConfig
from tasks.engine.dataset import Frozen
from tasks.engine.errors import UserError, listing, nearest
from tasks.engine.formats import FORMATS
from tasks.engine.frames import changed_at, modified
from tasks.engine.inputs import SourceFile, open_source
from tasks.engine.secrets import redact, resolved

_LOADER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
_WILD = re.compile(r"[*?\[]")


class Source(Frozen):
    """`shown` is the source as the user wrote it, without secrets. `files` are sorted by path."""

    shown: str
    format: str
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files as stored; 0 for what is not stored in files."""
        return sum(file.size for file in self.files)


def resolve(config: DataConfig) -> Source:
    """The format and the files of `config.source`, listed but not read (only first bytes are).

    Raises:
        UserError: nothing is there, or it is of no known format or of several.
    """
    source = config.source
    shown = redact(source)
    scheme = _SCHEME.match(source)
    if (config.query or config.table) and (not scheme or scheme[1] == "file"):
        setting = "data.query" if config.query else "data.table"
        raise UserError(f"{setting} is for databases, and data.source={shown!r} is none.")
    if source.startswith("demo:"):
        if source != DEMO:
            raise UserError(f"There is no {source!r}. The one demo is {DEMO!r}.")
        return _whole(shown, "demo", "demo", version="1")
    if is_loader(source):
        return _whole(shown, "loader", source)
    if scheme and _is_database(scheme[1], config):
        return _whole(shown, "sql", config.table or "query")
    if scheme and scheme[1] != "file":
        return _source(config, shown, _remote(source, shown, scheme[1]))
    return _source(config, shown, _local(re.sub(r"^file://", "", source), shown))


def is_file_path(source: str) -> bool:
    """Whether a source is a path on this host, from the root or not."""
    return is_data(source) and not _SCHEME.match(source)


def is_data(source: str) -> bool:
    """Whether no code makes the rows: the user's own, or scikit-learn's for the demo."""
    return not (is_loader(source) or source.startswith("demo:"))


def is_loader(source: str) -> bool:
    """Whether a source is code of the user's, `module:function`."""
    is_name = _LOADER.fullmatch(source) and not source.startswith("demo:")
    return bool(is_name) and not os.path.exists(source)


def current(file: SourceFile) -> tuple[int, str]:
    """Size and time of change (or ETag) of a file as they are now."""
    if "://" in file.uri:
        fsspec.core.url_to_fs(resolved(file.uri))[0].invalidate_cache()
    return modified(file.uri)


def _whole(shown: str, name: str, path: str, version: str = "") -> Source:
    """A source that is no file: `path` names its rows, wherever the database may move."""
    file = SourceFile(uri=shown, path=path, size=0, modified=version, shown=shown)
    return Source(shown=shown, format=name, files=(file,))


def _is_database(scheme: str, config: DataConfig) -> bool:
    name = scheme.split("+")[0].lower()
    if name in _DATABASES or config.query or config.table:
        return True
    protocols = fsspec.available_protocols()
    if name in protocols:
        return False
    from sqlalchemy.dialects import registry
    from sqlalchemy.exc import NoSuchModuleError

    try:
        registry.load(name)
        return True
    except NoSuchModuleError:
        raise UserError(
            f"data.source begins with {scheme}://, which is neither a file system nor a database "
            f"that is known here.{nearest(name, [*protocols, *_DATABASES])} Files: "
            f"{listing(['s3', 'gs', 'abfs', 'https', 'ftp', 'file'])}. Databases: "
            f"{listing(_DATABASES)}."
        ) from None


def _local(text: str, shown: str) -> list[SourceFile]:
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return _local_files(_walk(path), path, shown)
        if path.exists():
            return _local_files([path], path.parent, shown, single=True)
        if _WILD.search(text):
            root = _fixed(text)
            if Path(root or ".").expanduser().is_dir():
                found = _matching(text, Path(root or ".").expanduser())
                return _local_files(found, Path(root or ".").expanduser(), root.rstrip("/"))
            path = Path(root)
    except PermissionError as error:
        raise UserError(f"{error.filename or shown} can't be read: permission denied.") from None
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise UserError(f"data.source={shown!r} can't be read: {cause}.") from None
    if path.is_symlink():
        raise UserError(f"data.source={shown!r} is a link that leads nowhere.")
    raise _not_there(path, shown)


def _walk(root: Path) -> list[Path]:
    """The files below, also where a link leads to a folder."""

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        if len(Path(folder).parts) > len(root.parts) and _leads_back(Path(folder), root):
            raise UserError(f"{folder} is a link to a folder that it lies in.")
        if "_delta_log" in folders:
            raise UserError(
                f"{folder} is a Delta Lake table, whose folder also holds rows that were deleted. "
                "Read it with a loader of your own (data.source=module:function)."
            )
        folders[:] = [name for name in folders if name[0] not in "_."]
        found += [Path(folder, name) for name in names]
    return found


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether a linked folder is one of those above it, and would be walked for ever."""
    above = folder.relative_to(root).parents
    return folder.is_symlink() and any(folder.samefile(root / parent) for parent in above)


def _matching(pattern: str, root: Path) -> list[Path]:
    """Files that match; of a folder that matches, the files in it."""
    import glob

    found: list[Path] = []
    for name in glob.glob(os.path.expanduser(pattern), recursive=True):
        path = Path(name)
        found += _walk(path) if path.is_dir() else [path]
    return sorted(set(found))


def _local_files(
    paths: Iterable[Path], root: Path, shown: str, single: bool = False
) -> list[SourceFile]:
    files = []
    front = f"{shown.rstrip('/')}/" if shown else ""
    for path in paths:
        relative = path.relative_to(root).as_posix()
        if not single and _ignored(relative):
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(f"{front}{relative} is a link that leads nowhere.")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"{shown if single else front + relative} is a pipe or a device, which can be read "
                "but once. Write its rows to a file."
            )
        files.append(
            SourceFile(
                uri=str(path.resolve()),
                path=relative,
                size=status.st_size,
                modified=str(status.st_mtime_ns),
                shown=shown if single else front + relative,
            )
        )
    return files


def _ignored(relative: str) -> bool:
    """Names that Spark, Hadoop and editors leave beside data."""
    hidden = any(part[0] in "_." for part in relative.split("/"))
    return hidden or relative.endswith((".tmp", ".crc"))


def _fixed(pattern: str) -> str:
    """The folder in front of the first wildcard, with its slash; "" for the current one."""
    head = pattern[: _WILD.search(pattern).start()]  # type: ignore[union-attr]
    return head[: head.rfind("/") + 1]


def _not_there(path: Path, shown: str) -> UserError:
    """Names the first part of the path that is missing, and what there is in its place."""
    missing = Path(os.path.abspath(path))
    while not missing.parent.is_dir():
        missing = missing.parent
    folder = missing.parent
    try:
        known = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".")
        state = f"holds: {listing(known)}" if known else "is empty"
    except PermissionError:
        known, state = [], "can't be listed"
    what = f"data.source={shown!r}: there is no "
    what += f"{missing.name!r}" if missing.name == path.name else f"folder {missing.name!r}"
    hint = nearest(missing.name, known)
    return UserError(f"{what}.{hint} The folder {str(folder)!r} {state}.")


def _remote(source: str, shown: str, scheme: str) -> list[SourceFile]:
    if ":" in urlsplit(source).netloc.rpartition("@")[0]:
        raise UserError(
            f"data.source={shown!r} holds a password, which would be kept with every file. Set it "
            f"where fsspec looks for it: the variable FSSPEC_{scheme.upper()}_PASSWORD, or the "
            "storage's own (AWS_SECRET_ACCESS_KEY, say)."
        )
    try:
        filesystem, path = fsspec.core.url_to_fs(resolved(source))
        infos = _remote_infos(filesystem, path, scheme)
    except (FileNotFoundError, NotADirectoryError) as error:
        cause = error.__cause__  # fsspec's HTTP says so, too, of hosts that don't answer
        if (cause and getattr(cause, "status", 404) != 404) or isinstance(cause, OSError):
            raise _unreachable(source, shown, cause) from None
        raise _not_there_remote(source, shown) from None
    except ImportError as error:
        raise UserError(f"data.source={shown!r}: {str(error).rstrip('.')}.") from None
    except PermissionError as error:
        raise UserError(f"data.source={shown!r}: permission denied ({error}).") from None
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001  every file system has errors of its own
        raise _unreachable(source, shown, error) from None
    root, names = infos
    single = len(names) == 1 and next(iter(names)) == path
    files = []
    for name, info in names.items():
        relative = name.removeprefix(root).lstrip("/")
        if scheme in ("http", "https"):
            relative = relative.partition("?")[0] or relative  # a signature is no part of a name
        if single or not _ignored(relative):
            uri = source if single else filesystem.unstrip_protocol(name)
            files.append(
                SourceFile(
                    uri=uri,
                    path=relative,
                    size=int(info.get("size") or 0),
                    modified=changed_at(info),
                    shown=redact(uri),
                )
            )
    return files


def _unreachable(source: str, shown: str, error: BaseException) -> UserError:
    status = getattr(error, "status", None)
    if status in (401, 403):
        return UserError(
            f"data.source={shown!r}: the server refuses ({status} {getattr(error, 'message', '')})."
            " Its credentials belong where fsspec looks for them: the storage's own variables, or "
            "a file in ~/.config/fsspec."
        )
    cause = f"{type(error).__name__}: {error}".replace(source, shown).rstrip(". ")
    return UserError(
        f"data.source={shown!r} can't be reached ({cause}). Correct the address, or look whether "
        "this host reaches it."
    )


def _remote_infos(filesystem: Any, path: str, scheme: str) -> tuple[str, dict[str, Any]]:
    """The root, and fsspec's information about each file by its name."""
    wild = "*" if scheme in ("http", "https") else "*?["
    if any(mark in path for mark in wild):
        found = filesystem.glob(path, detail=True)
        names = {name: info for name, info in found.items() if info["type"] == "file"}
        if not names:
            raise FileNotFoundError(path)
        return _fixed(path).rstrip("/"), names
    info = filesystem.info(path)
    if info["type"] != "directory":
        whole = path.partition("?")[0] if scheme in ("http", "https") else path
        return whole.rpartition("/")[0], {path: info}
    if filesystem.exists(f"{path.rstrip('/')}/_delta_log"):
        raise UserError(
            f"{path} is a Delta Lake table, whose folder also holds rows that were deleted. Read "
            "it with a loader of your own (data.source=module:function)."
        )
    return path, filesystem.find(path, detail=True)


def _not_there_remote(source: str, shown: str) -> UserError:
    """Names what the folder holds, where it can be listed."""
    try:
        filesystem, path = fsspec.core.url_to_fs(resolved(source))
        folder, _, name = path.rstrip("/").rpartition("/")
        names = [entry.rstrip("/").rpartition("/")[2] for entry in filesystem.ls(folder, False)]
    except Exception:  # noqa: BLE001  the listing only helps the message
        return UserError(f"There is nothing at data.source={shown!r}.")
    known = sorted(names)
    holds = f" Beside it there are: {listing(known)}." if known else ""
    return UserError(f"There is nothing at data.source={shown!r}.{nearest(name, known)}{holds}")


def _source(config: DataConfig, shown: str, files: list[SourceFile]) -> Source:
    if not files:
        raise UserError(
            f"data.source={shown!r} holds no data files (names that begin with _ or . and .tmp "
            "and .crc files don't count)."
        )
    files.sort(key=lambda file: file.path)
    if config.format:
        return Source(shown=shown, format=config.format, files=tuple(files))
    formats = {file.shown: _format_of(file) for file in files}
    first = files[0]
    others = [file for file in files if formats[file.shown] != formats[first.shown]]
    for second in others[:1]:
        raise UserError(
            f"data.source={shown!r} holds files of several formats: {first.shown} "
            f"({formats[first.shown]}) and {second.shown} ({formats[second.shown]}). Name those "
            'that are meant, as in data.source="folder/*.csv".'
        )
    return Source(shown=shown, format=formats[first.shown], files=tuple(files))


def _format_of(file: SourceFile) -> str:
    """By the name's ending, else by the first bytes."""
    name = PurePosixPath(urlsplit(file.uri).path if "://" in file.uri else file.path).name.lower()
    name = name.removesuffix(".gz")
    for known in FORMATS.values():
        if name.endswith(known.endings) and known.endings:
            return known.name
    with open_source(file) as stream:
        head = stream.read(8)
    for known in FORMATS.values():
        if known.magic and head.startswith(known.magic):
            return known.name
    endings = [known.endings[0] for known in FORMATS.values() if known.endings]
    raise UserError(
        f"{file.shown}: its name does not say which format it has. Set data.format (parquet, csv, "
        f"tsv, arrow or json), rename it ({listing(endings)} are known, also with .gz behind), or "
        'leave it out by a wildcard, as in data.source="folder/*.csv".'
    )


def partition_note(source: Source) -> list[str]:
    """Tells of folders that others read as columns, as in `day=1/part.parquet`."""
    folders = {part for file in source.files for part in file.path.split("/")[:-1] if "=" in part}
    if not folders:
        return []
    return [
        f"Folder names such as {min(folders)!r} are not read as columns: write the column into "
        "the files if it is needed."
    ]
