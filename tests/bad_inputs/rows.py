"""Every bad input that is promised an answer, and the tests that show it: the one list of them.

A test is `file::function` or `file::function[case]`; a file without a folder lies beside this one.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """An input, what becomes of it, and by which tests."""

    input: str
    answer: str
    tests: tuple[str, ...]


def cases(test: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{test}[{name}]" for name in names)


def csv(*names: str) -> tuple[str, ...]:
    return cases("test_csv::test_csv", *names)


def parquet(*names: str) -> tuple[str, ...]:
    return cases("test_files::test_parquet", *names)


def folder(*names: str) -> tuple[str, ...]:
    return cases("test_files::test_folder", *names)


def values(*names: str) -> tuple[str, ...]:
    return cases("test_values::test_refused", *names)


def warned(*names: str) -> tuple[str, ...]:
    return cases("test_values::test_warned_and_trained", *names)


def accepted(*names: str) -> tuple[str, ...]:
    return cases("test_accepted::test_accepted", *names)


def settings(*names: str) -> tuple[str, ...]:
    return cases("test_settings::test_refused", *names)


def places(*names: str) -> tuple[str, ...]:
    return cases("test_places::test_refused", *names)


def loaders(*names: str) -> tuple[str, ...]:
    return cases("engine/test_read_loader::test_loader_refused", *names)


def no_files(*names: str) -> tuple[str, ...]:
    return cases("engine/test_sources::test_what_is_no_file_in_a_folder", *names)


FILES = (
    Row(
        "Parquet truncated, zero bytes, CSV named .parquet, huge footer",
        "refused",
        parquet("cut short", "empty", "zeros", "CSV named .parquet", "huge footer"),
    ),
    Row("Parquet with a wrong head magic", "refused", parquet("wrong head magic")),
    Row(
        "Parquet with flipped bits in a page",
        "checksums verified where written, else another digest",
        (
            "test_damage::test_checksums_are_verified",
            "test_damage::test_without_checksums_the_digest_shows_it",
            *parquet("damaged page"),
        ),
    ),
    Row("one bad file among many", "refused, named", folder("bad files among good ones")),
    Row("empty folder, only marks", "refused", folder("empty folder", "only marks")),
    Row("marks beside data", "accepted", accepted("marks beside data")),
    Row(
        "int in one file, float in another",
        "warned",
        ("engine/test_parquet::test_integers_beside_floats_are_noted",),
    ),
    Row(
        "string in one file, float in another",
        "refused",
        folder("text and floats", "numbers and text in CSV files"),
    ),
    Row("column missing in one file", "refused", folder("column missing in one file")),
    Row(
        "extra column in one file",
        "warned",
        ("engine/test_parquet::test_extra_column_is_left_out_with_a_note",),
    ),
    Row("columns in another order", "accepted", accepted("columns in another order")),
    Row("duplicate column names", "refused", parquet("duplicate names") + csv("duplicate names")),
    Row(
        "naive and zoned timestamps mixed",
        "refused",
        folder("naive and zoned") + csv("naive and zoned"),
    ),
    Row(
        "small files that open to much",
        "refused over the size, read under it",
        ("test_files::test_parquet_that_opens_to_too_much", *csv("opens to too much")),
    ),
    Row(
        "links to files and folders",
        "accepted: read as if they lay there",
        ("engine/test_sources::test_links_are_followed",),
    ),
    Row(
        "links that lead nowhere or back, pipes, devices",
        "refused, named",
        (
            *no_files("a loop", "nowhere", "a pipe"),
            "engine/test_sources::test_a_device_is_not_read",
        ),
    ),
    Row(
        "folders named like day=1",
        "a note: they are no columns",
        ("engine/test_sources::test_partition_folders_are_noted",),
    ),
    Row("some row groups empty", "accepted", accepted("empty row groups")),
    Row(
        "a source that changes while it is read",
        "refused, named",
        (
            "test_files::test_a_file_that_changes_while_it_is_read",
            "engine/test_profile::test_a_file_that_changes_while_it_is_read_is_refused",
        ),
    ),
)

TEXT = (
    Row(
        "CSV row with an extra field",
        "refused, with its line",
        csv("extra field") + cases("test_values::test_csv_cell", "decimal comma"),
    ),
    Row(
        "CSV row too short, cut at the end",
        "refused, with its line",
        csv("short row", "cut mid-line", "cut behind a separator"),
    ),
    Row(
        "Latin-1 or UTF-16",
        "refused, naming the setting",
        csv("latin-1", "utf-16", "utf-16 without its mark", "unknown encoding"),
    ),
    Row(
        "BOM, CRLF, mixed line ends",
        "accepted",
        accepted("UTF-8 BOM", "CRLF", "mixed ends", "mixed with CR"),
    ),
    Row("NUL bytes", "refused", csv("NUL bytes")),
    Row("gzip cut short", "refused", csv("gzip cut short", "gzip damaged")),
    Row("text late in a numeric column", "refused, with its line", csv("text late in numbers")),
    Row(
        "float late in an integer column",
        "accepted as float",
        ("test_accepted::test_a_float_late_in_an_integer_column_is_read_as_it_is",),
    ),
    Row("empty CSV, header only", "refused", csv("empty", "header only")),
    Row(
        "unterminated quote, other separators",
        "refused, suggesting the separator",
        csv("unterminated quote", "quote closed by the next", "semicolons", "tabs"),
    ),
    Row(
        "-, ?, N/A as missing",
        "refused unless declared",
        csv("question mark", "mostly N/A")
        + cases("test_values::test_csv_cell", "dash", "target question mark")
        + accepted("declared dash"),
    ),
    Row(
        "30-digit integers",
        "refused",
        csv("30 digits") + cases("test_files::test_json", "30 digits"),
    ),
    Row(
        "integers or labels beyond 2^53",
        "warned",
        warned("integers beyond 2^53", "labels beyond 2^53"),
    ),
    Row("empty column name", "refused", parquet("empty name") + csv("empty name")),
)

VALUES = (
    Row("NaN in a feature", "accepted", accepted("NaN", "NaN in CSV", "nothing in CSV")),
    Row(
        "infinity or 1e300 in a feature",
        "refused, naming the column",
        values("infinite feature", "minus infinity", "1e300 feature")
        + cases("test_values::test_csv_cell", "1e400 in CSV")
        + ("test_scoring::test_a_value_that_only_scaling_makes_infinite_is_told_when_training",),
    ),
    Row(
        "constant or all-missing column",
        "warned",
        warned("constant column", "one category", "all-missing column"),
    ),
    Row(
        "decimals, dates, zoned timestamps, timedeltas, nullable integers",
        "accepted",
        accepted("decimals", "dates", "zoned timestamps", "timedeltas", "nullable integers"),
    ),
    Row(
        "lists, structs, binary",
        "refused, naming the column and data.features",
        values("lists", "structs", "binary"),
    ),
    Row("more categories than allowed", "refused, naming the limit", values("too many categories")),
    Row(
        "odd signs in names",
        "accepted, restored in every output",
        (
            "test_accepted::test_odd_names_are_restored_in_every_output",
            "test_accepted::test_a_name_with_every_sign_can_be_the_target",
        ),
    ),
    Row(
        "target missing from the table",
        "refused, listing the columns and the nearest",
        values("target missing from the table", "target misspelt"),
    ),
    Row(
        "target NaN, infinite, 1e300 in some rows",
        "refused, or set aside within the share",
        values("target NaN", "target infinite", "target 1e300", "target too far spread")
        + values("target near the end of 32-bit floats")
        + warned("target set aside within the share", "infinite target set aside"),
    ),
    Row("target as numeric text", "refused", values("target as numeric text")),
    Row("target constant", "warned", warned("target constant", "target varies too little")),
    Row(
        "zero rows, one row, a split left empty",
        "refused",
        parquet("zero rows") + csv("header only") + values("one row", "a split left empty"),
    ),
    Row(
        "fewer rows than workers", "accepted", ("test_on_a_cluster::test_fewer_rows_than_workers",)
    ),
    Row("no features left", "refused", values("no features left", "only the target")),
    Row(
        "weights negative, NaN, all zero, of another length",
        "refused (columns are of one length: a CSV line without its weight is too short)",
        values("negative weight", "weight NaN", "weight infinite", "all weights zero")
        + values("weights as text")
        + csv("short row"),
    ),
    Row(
        "a bad label that only one worker sees",
        "refused, naming file and row",
        (
            "test_on_a_cluster::test_a_bad_label_that_only_one_worker_sees",
            "engine/test_boost::test_a_users_error_is_named_not_its_echo",
        ),
    ),
    Row(
        "a feature equal to the target, or nearly",
        "warned: probable leakage",
        warned("feature equal to the target", "feature mirrors the target"),
    ),
)

SCORING = (
    Row(
        "category unseen in training",
        "accepted as missing, counted",
        ("test_scoring::test_an_unseen_category_is_missing_and_counted",),
    ),
    Row(
        "features permuted",
        "matched by name",
        ("test_scoring::test_features_are_matched_by_name",),
    ),
    Row(
        "infinite or of another kind",
        "refused, naming file, column and row",
        cases("test_scoring::test_refused", "infinite", "text for numbers"),
    ),
)

SETTINGS = (
    Row(
        "learning rate NaN, zero rounds, misspelt parameter",
        "refused, with the nearest name",
        cases(
            "engine/test_settings::test_a_wrong_setting_is_told_with_the_way_out",
            *("nan", "zero-rounds", "misspelt", "section", "elsewhere", "other-name"),
        ),
    ),
    Row(
        "wrong type",
        "refused",
        settings(
            "no list", "no list of lists", "true", "fraction", "no date", "a number for a text"
        )
        + settings("no size", "a table for a number"),
    ),
    Row(
        "out of range",
        "refused",
        settings("too large", "beyond 32 bits", "infinite", "a quote for a separator")
        + settings("a slash in a name", "neither rising nor falling"),
    ),
    Row(
        "contradictory settings",
        "refused",
        settings("group of what", "column of a hash", "date of a hash", "valid without test")
        + settings("no test", "stopping without valid rows", "chunk", "no depth")
        + settings("forest of one tree", "target among features", "query and table", "where")
        + settings("address of a local cluster")
        + ("test_settings::test_refused_for_the_table",),
    ),
    Row(
        "a file that is not TOML, or not UTF-8",
        "refused",
        cases("test_settings::test_file_refused", "cut short", "twice", "not UTF-8", "UTF-16"),
    ),
    Row(
        "a mark and line ends of Windows in a configuration",
        "accepted",
        ("test_settings::test_a_mark_and_the_line_ends_of_windows_are_accepted",),
    ),
    Row(
        "a loader that is missing, raises, returns nonsense",
        "refused",
        loaders("no module", "no function", "not a function", "raises", "import fails")
        + loaders("returns nothing", "returns a number", "mixed types", "no rows")
        + ("flows/test_train::test_a_failed_run_is_told_truthfully",),
    ),
    Row(
        "cron at 02:30 on the night the clocks change",
        "UTC unless a zone is given",
        cases(
            "flows/test_schedule::test_the_nights_when_clocks_change",
            *("UTC has no such night", "an hour left out", "an hour twice"),
        )
        + cases("flows/test_schedule::test_moved_runs_are_told", "in the hour that is left out")
        + ("flows/test_deploy::test_deployed_and_brought_up_to_date",),
    ),
)

PLACES = (
    Row("unreachable URI", "refused", places("unreachable", "unreachable by FTP", "no folder")),
    Row(
        "wrong credentials",
        "refused",
        cases("test_places::test_a_server_that_says_no", "no credentials", "wrong credentials"),
    ),
    Row(
        "SQL that fails",
        "refused",
        (
            *cases("test_places::test_sql", "syntax", "unknown column", "two statements"),
            "test_places::test_a_file_that_is_no_database",
        ),
    ),
    Row("unknown scheme", "refused", places("unknown scheme", "missing driver")),
    Row(
        "MLflow's experiment deleted, its store damaged",
        "refused, or told as a failure",
        (
            "flows/test_places::test_an_experiment_that_was_deleted",
            "flows/test_places::test_a_store_that_lacks_a_column",
        ),
    ),
    Row("port in use", "refused", ("test_places::test_a_port_that_is_taken",)),
    Row("no space", "refused", ("test_places::test_no_space",)),
    Row(
        "no permission",
        "refused",
        (
            "test_places::test_no_permission_to_read",
            "test_places::test_no_permission_to_write",
            "test_command::test_a_home_that_can_not_be_written",
        ),
    ),
    Row(
        "refusals through the real command",
        "exit code 2, one message, soon, nothing half-written",
        (
            "test_command::test_refused_soon_and_nothing_is_left_half_done",
            "test_command::test_what_was_refused_is_read_anew_once_it_is_mended",
        ),
    ),
)

ROWS = (*FILES, *TEXT, *VALUES, *SCORING, *SETTINGS, *PLACES)
