"""Settings of a wrong type, out of range, or at odds with each other (names: test_settings of the
engine)."""

from pathlib import Path

import pytest

from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.settings import load_config
from tests.bad_inputs.early import columns, csv, refused

LIST = 'it should be a list, as in ["a", "b"]'


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # of a wrong type
        pytest.param(["data.features='a'"], f"data.features is 'a': {LIST}.", id="no list"),
        pytest.param(
            ["boost.interaction_constraints=['a']"],
            f"boost.interaction_constraints is 'a': {LIST}.",
            id="no list of lists",
        ),
        pytest.param(
            ["boost.max_depth=true"], "boost.max_depth: it can't be true or false.", id="true"
        ),
        pytest.param(
            ["boost.n_estimators=1.5"],
            "boost.n_estimators is 1.5: it should be a valid integer, got a number with a "
            "fractional part.",
            id="fraction",
        ),
        pytest.param(
            ["split.kind='time'", "split.column='t'", "split.test_from='gestern'"],
            "split.test_from is 'gestern': it should be a date or a time, as in 2026-01-31.",
            id="no date",
        ),
        pytest.param(
            ["track.tags.team=5"],
            "track.tags.team is 5: it should be a valid string.",
            id="a number for a text",
        ),
        pytest.param(
            ["cluster.memory_limit='lots'"],
            "cluster.memory_limit: 'lots' is no size of memory: write it as in \"4GiB\".",
            id="no size",
        ),
        pytest.param(
            ["boost.max_depth.deep=1"],
            "boost.max_depth is {'deep': 1}: it should be a valid integer.",
            id="a table for a number",
        ),
        # out of range
        pytest.param(
            ["boost.learning_rate=2"],
            "boost.learning_rate is 2: it should be less than or equal to 1.",
            id="too large",
        ),
        pytest.param(
            ["boost.max_depth=2147483648"],
            "boost.max_depth is 2147483648: it should be less than 2147483648.",
            id="beyond 32 bits",
        ),
        pytest.param(
            ["split.test=inf"], "split.test is inf: it should be a finite number.", id="infinite"
        ),
        pytest.param(
            ["data.separator='\"'"],
            "data.separator is '\"': it should be one ASCII character, and no quote or line end.",
            id="a quote for a separator",
        ),
        pytest.param(
            ["track.model='a/b'"],
            "track.model is 'a/b': it should have no slash and no colon.",
            id="a slash in a name",
        ),
        pytest.param(
            ["boost.monotone_constraints={a=2}"],
            "boost.monotone_constraints.a is 2. It takes -1, 0 or 1.",
            id="neither rising nor falling",
        ),
        # at odds with each other
        pytest.param(
            ["split.kind='group'"], "split.kind=group needs split.column.", id="group of what"
        ),
        pytest.param(
            ["split.column='a'"],
            "split.column is for the kinds group, time and column, not hash.",
            id="column of a hash",
        ),
        pytest.param(
            ["split.valid_from=2026-01-01"],
            "split.valid_from and split.test_from are for split.kind=time.",
            id="date of a hash",
        ),
        pytest.param(
            ["split.kind='time'", "split.column='t'", "split.valid_from=2026-01-01"],
            "split.valid_from needs split.test_from beside it.",
            id="valid without test",
        ),
        pytest.param(
            ["split.kind='time'", "split.column='t'", "split.test_from=2026-01-01"],
            "split.test_from needs split.valid_from beside it, or split.valid=0 for no valid rows.",
            id="test without valid",
        ),
        pytest.param(
            ["split.test=0"], "split.test is 0: nothing would judge the model.", id="no test"
        ),
        pytest.param(
            ["split.valid=0", "boost.early_stopping_rounds=5"],
            "boost.early_stopping_rounds needs valid rows: set split.valid above 0.",
            id="stopping without valid rows",
        ),
        pytest.param(
            ["boost.colsample_bytree=0.5", "boost.column_chunk=7"],
            "boost.column_chunk=7 does not divide boost.checkpoint_every=20.",
            id="chunk",
        ),
        pytest.param(
            ["boost.max_depth=0", "boost.max_leaves=8"],
            "boost.max_depth=0 (no limit) needs boost.grow_policy=lossguide.",
            id="no depth",
        ),
        pytest.param(
            ["boost.num_parallel_tree=3"],
            "boost.num_parallel_tree > 1 needs column sampling (boost.colsample_bynode=0.8, say): "
            "without it all trees of a round are the same.",
            id="forest of one tree",
        ),
        pytest.param(
            ["data.target='y'", "data.features=['y']"],
            "the target 'y' is among data.features.",
            id="target among features",
        ),
        pytest.param(
            ["data.query='SELECT 1'", "data.table='t'"],
            "set data.query or data.table, not both.",
            id="query and table",
        ),
        pytest.param(
            ["cluster.kind='address'"], "cluster.kind=address needs cluster.address.", id="where"
        ),
        pytest.param(
            ["cluster.address='tcp://h:1'"],
            "cluster.address is for cluster.kind=address.",
            id="address of a local cluster",
        ),
        pytest.param(
            ["cluster.max_workers=1"],
            "cluster.max_workers=1 is less than cluster.workers=2.",
            id="shrinking",
        ),
        pytest.param(
            ["cluster.kind='slurm'", "cluster.image='x'"],
            "cluster.image is for cluster.kind=kubernetes.",
            id="image of a job",
        ),
        pytest.param(
            ["cluster.gpus=1"],
            "cluster.gpus is for cluster.kind=kubernetes or slurm.",
            id="gpus of a local cluster",
        ),
        pytest.param(
            ["cluster.kind='slurm'", "cluster.gpus=4"],
            "cluster.gpus: a worker trains on one GPU, not 4: set cluster.gpus=1, and "
            "cluster.workers to the number of all GPUs.",
            id="several GPUs of a worker",
        ),
        pytest.param(
            ["cluster.kind='slurm'", "cluster.walltime='4h'"],
            "cluster.walltime: '4h' is no time of Slurm: write it as in \"04:00:00\" or "
            '"1-00:00:00".',
            id="walltime",
        ),
        pytest.param(
            ["cluster.kind='kubernetes'"],
            "cluster.kind=kubernetes needs cluster.image, a container image with Boostline "
            "(infra/Containerfile makes one).",
            id="no image",
        ),
        pytest.param(
            ["cluster.kind='kubernetes'", "cluster.image='x'"],
            "cluster.kind=kubernetes needs TLS: whoever reaches the scheduler can run code on the "
            "workers. Name the Secret with ca.crt, tls.crt and tls.key in cluster.tls_secret, and "
            "their files in this pod in cluster.tls_ca, tls_cert and tls_key; or set "
            "cluster.allow_insecure=true where a network policy keeps all others away.",
            id="kubernetes without tls",
        ),
        pytest.param(
            ["cluster.kind='kubernetes'", "cluster.image='x'", "cluster.tls_secret='dask-tls'"],
            "TLS needs cluster.tls_ca and cluster.tls_cert and cluster.tls_key, too.",
            id="half of the tls",
        ),
        pytest.param(
            ["cluster.kind='slurm'", "cluster.tls_ca='ca.pem'"],
            "cluster.tls_ca, tls_cert and tls_key are for cluster.kind=address or kubernetes: with "
            "Slurm each run makes its own, for itself and its jobs.",
            id="tls of slurm",
        ),
    ],
)
def test_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(overrides=overrides)
    assert str(error.value) == f"The configuration is wrong: {message}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"data.query": "SELECT 1"},
            "data.query is for databases, and data.source='{file}' is none.",
            id="query of a file",
        ),
        pytest.param(
            {"data.weight": "a", "data.features": ["a", "c"]},
            "'a' is in data.features and in data.weight. Take it out of one.",
            id="weight is a feature",
        ),
        pytest.param(
            {"data.features": ["a"], "data.exclude": ["a"]},
            "'a' is in data.features and in data.exclude. Take it out of one.",
            id="in and out",
        ),
        pytest.param(
            {"split.kind": "time", "split.column": "c"},
            "The split column 'c' (split.column) holds text: split.kind=time needs dates, "
            "timestamps or, by shares, numbers.",
            id="time in text",
        ),
        pytest.param(
            {"split.kind": "column", "split.column": "c"},
            "The split column 'c' (split.column) holds 'x'. It takes the labels train, valid and "
            "test.",
            id="unknown label",
        ),
        pytest.param(
            {"data.rules": ["a >"]},
            "The rule 'a >' (data.rules) can't be used: it does not read as an expression. Rules "
            'are comparisons of columns, as in "price > 0", "low <= high", "state in [\'CA\', '
            '\'NY\']" or "present(price)"; put odd names in backticks.',
            id="no rule",
        ),
    ],
)
def test_refused_for_the_table(
    settings: dict[str, object], message: str, tmp_path: Path, home: Home
) -> None:
    file = csv(tmp_path / "data", columns())
    assert refused(file, home, settings) == message.replace("{file}", str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            b"[data\n",
            "{file} is not valid TOML: Expected ']' at the end of a table declaration (at line 1, "
            "column 6).",
            id="cut short",
        ),
        pytest.param(
            b"[data]\ntarget = 1\ntarget = 2\n",
            "{file} is not valid TOML: Cannot overwrite a value (at line 3, column 11).",
            id="twice",
        ),
        pytest.param(
            b"[data]\ntarget = '\xff'\n",
            "{file}, line 2: byte 0xff is not UTF-8, as TOML must be. Save the file as UTF-8.",
            id="not UTF-8",
        ),
        pytest.param(
            "[data]\n".encode("utf-16"),
            "{file}, line 1: byte 0xff is not UTF-8, as TOML must be. Save the file as UTF-8.",
            id="UTF-16",
        ),
        pytest.param(
            b"data = 5\n",
            "The configuration is wrong in {file}: data is 5: it should be a section of settings, "
            "as in [data].",
            id="no section",
        ),
    ],
)
def test_file_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(str(file))
    assert str(error.value) == message.replace("{file}", str(file))


def test_a_mark_and_the_line_ends_of_windows_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b'\xef\xbb\xbf[data]\r\nsource = "a.csv"\r\ntarget = "y"\r\n')
    assert load_config(str(file)).data.target == "y"
