"""The command's entry: every way a command can end, as a message and an exit code.

Worker processes import this module again (it is the console script's main module), so it imports
nothing heavy.
"""

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

GOES_ON = "What was done up to the last checkpoint is kept: the same command goes on from there."


def main() -> NoReturn:
    """Runs the command line and exits: 0 done, 2 the input is wrong, 130 Ctrl-C, 1 anything else.

    The folder the user stands in comes last on `sys.path`: a loader of theirs is found there, and
    a `tasks.py` of theirs takes nothing's place.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    try:
        code = _exit_code()
    except KeyboardInterrupt:  # before that could be met, or once more while it was
        _say(_interrupted())
        code = 130
    train = sys.modules.get("flows.train")
    if train is not None and train.unsent.is_set():
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # Prefect would wait for its server at the end, for minutes
    gc.freeze()  # at its end Python would look through a million objects once more, for a second
    sys.exit(code)


def _exit_code() -> int:
    from infra.start_limit import StartSettingError
    from tasks.engine.errors import RunError, UserError

    try:
        sys.path.append(os.getcwd())
        from flows.cli import app

        app()
    except SystemExit as end:
        return _told(end)
    except KeyboardInterrupt:
        _say(_interrupted())
        return 130
    except (UserError, StartSettingError) as error:
        _say(str(error))
        return 2
    except RunError as error:
        _say(str(error))
        return 1
    except BaseException as error:  # noqa: BLE001 - the last stop: told, kept, and exit code 1
        if refused := _refused_by_prefect(error):
            _say(refused)
            return 2
        _say_unexpected(error)
        return 1
    return 0


def _told(end: SystemExit) -> int:
    """Typer ends with SystemExit also after Ctrl-C and after a pipe that broke, without a word."""
    if end.code == 130:
        _say(_interrupted())
    elif isinstance(end.__context__, BrokenPipeError):
        _say("Whoever read this command's output closed it before the end.")
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _interrupted() -> str:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return f"Interrupted. {GOES_ON}" if command == "train" else "Interrupted."


def _refused_by_prefect(error: BaseException) -> str:
    """What to say where Prefect's server lets nobody in; nothing of any other error."""
    exceptions = sys.modules.get("prefect.exceptions")
    if exceptions is None or not isinstance(error, exceptions.PrefectHTTPStatusError):
        return ""
    code = error.response.status_code
    if code not in (401, 403):
        return ""
    from tasks.engine.secrets import without_secrets

    place = without_secrets(os.environ.get("PREFECT_API_URL", ""))
    return (
        f"The Prefect server at {place} (PREFECT_API_URL) wants another password: it answers "
        f"{code}. Set PREFECT_API_AUTH_STRING to user:password, or PREFECT_API_KEY."
    )


def _say(message: str) -> None:
    try:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        # Python would try once more to flush at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _say_unexpected(error: BaseException) -> None:
    import traceback

    from tasks.engine.secrets import without_secrets

    text = without_secrets("".join(traceback.format_exception(error)))
    if "--verbose" in sys.argv:
        _say(text.rstrip())
    cause = without_secrets(" ".join(str(error).split()))
    named = f"{type(error).__name__}: {cause}" if cause else type(error).__name__
    kept = _save(text)
    where = f"The traceback is in {kept}." if kept else "See it whole with --verbose."
    _say(f"Unexpected, probably a bug in Boostline: {named}\n{where}")


def _save(text: str) -> str | None:
    """Writes the traceback under BOOSTLINE_HOME; None where that can't be written."""
    from datetime import UTC, datetime

    try:
        from tasks.engine.home import Home
        from tasks.engine.secrets import without_secrets

        folder = Home.at().local / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
        command = without_secrets(" ".join(sys.argv))
        file.write_text(f"{command}\n\n{text}", encoding="utf-8", errors="replace")
    except OSError:
        return None
    return str(file)
