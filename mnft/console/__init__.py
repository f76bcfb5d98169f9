"""What a person sees: messages and progress on stderr, data on stdout; the only user of rich."""

from mnft.console.live import LiveTable
from mnft.console.messages import (
    clean,
    clean_line,
    done,
    loading,
    note,
    setup_logging,
    show_data,
    show_error,
    show_facts,
    show_json,
    show_table,
    warn,
)
from mnft.console.progress import REPORTER, TrainingDisplay, progress

__all__ = [
    "REPORTER",
    "LiveTable",
    "TrainingDisplay",
    "clean",
    "clean_line",
    "done",
    "loading",
    "note",
    "progress",
    "setup_logging",
    "show_data",
    "show_error",
    "show_facts",
    "show_json",
    "show_table",
    "warn",
]
