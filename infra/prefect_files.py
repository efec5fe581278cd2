"""The files that Prefect's clients read beside our own server: logging, and no profiles."""

import json
import os
from pathlib import Path


def write_client_files(folder: Path) -> None:
    """Write what `environment` refers to: Prefect's logging without a terminal, no profiles."""
    to_api = {"level": "NOTSET", "handlers": ["api"], "propagate": False}
    from_settings = {"level": "${PREFECT_LOGGING_LEVEL}"}
    logging_config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "api": {"level": 0, "class": "prefect.logging.handlers.APILogHandler"},
            "worker_api": {"level": 0, "class": "prefect.logging.handlers.WorkerAPILogHandler"},
            "file": {
                "level": "WARNING",
                "class": "logging.FileHandler",
                # Prefect fills in $NAMES of its settings: a dollar of the path is doubled.
                "filename": str(folder / "client.log").replace("$", "$$"),
                "delay": True,
            },
        },
        "loggers": {
            # No handler on the root logger, which belongs to the program.
            "prefect": {**from_settings, "handlers": ["file"], "propagate": False},
            "prefect.extra": {**from_settings, "handlers": ["api"], "propagate": False},
            "prefect.flow_runs": to_api,
            "prefect.task_runs": to_api,
            "prefect.workers": {**to_api, "handlers": ["worker_api"]},
            "prefect._internal": {"level": "ERROR"},
        },
    }
    # JSON is YAML.
    _write_if_changed(folder / "quiet-logging.yml", json.dumps(logging_config, indent=1))
    _write_if_changed(folder / "profiles.toml", "")


def _write_if_changed(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)
