"""What the user sets: frozen, checked before any data is read. The field's help is the form."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.dates import timezone_name
from tasks.engine.secrets import redact
from tasks.engine.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Names = tuple[str, ...]


def _not_repeated(names: Names | None) -> Names | None:
    repeated = [name for i, name in enumerate(names or ()) if name in (names or ())[:i]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is named twice")
    return names


def _a_plain_name(name: str | None) -> str | None:
    """MLflow finds a model by a filter in which the name stands in quotes."""
    if name is not None and (name == "." or name.startswith("..") or set(name) & set("'\"`")):
        raise ValueError(f"{name!r} should have no quotes and not begin with two dots")
    return name


class DataConfig(Section):
    """Where the table is and which of its columns are used."""

    source: str = Field(
        "demo:regression",
        description="A file, folder, glob or URI (Parquet, CSV, TSV, Arrow, JSON lines; plain or "
        "gzip), a SQLAlchemy URL, `module:function` of your own, or `demo:regression`. In a URL "
        "`${NAME}` stands for an environment variable: write passwords and tokens so. `{date}` and "
        "`{yesterday}`, or `{date:%Y/%m/%d}`, stand for the day that the run is scheduled for.",
        min_length=1,
    )
    target: str | None = Field(None, description="The numeric column to predict.")
    features: Annotated[Names | None, AfterValidator(_not_repeated)] = Field(
        None, description="Feature columns; all but the target and the other named ones if unset."
    )
    exclude: Names = Field((), description="Columns that are not features.")
    weight: str | None = Field(None, description="A column of sample weights, 0 or more.")
    rules: Names = Field(
        (),
        description='What a row must fulfil, as in `"price > 0"`; a missing value fulfils a rule.',
    )
    max_rejected: Share = Field(
        0.0, description="Share of rows that may break a rule or lack a target before a run fails."
    )
    query: str | None = Field(None, description="SQL to read, where the source is a database.")
    table: str | None = Field(None, description="Table to read, where the source is a database.")
    timezone: Annotated[str, AfterValidator(timezone_name)] = Field(
        "UTC", description="Whose clock tells the day of `{date}`, as in Europe/Berlin."
    )
    format: Literal["parquet", "csv", "tsv", "arrow", "json"] | None = Field(
        None, description="Format of the files, where their names do not say it."
    )
    separator: str | None = Field(
        None, description="Field separator of CSV files.", min_length=1, max_length=1
    )
    encoding: str = Field("utf-8", description="Text encoding of CSV files.")
    missing_values: Names = Field(
        ("",), description="Texts that mean a missing value in CSV files, as in `N/A` or `?`."
    )
    categories: Names = Field((), description="Numeric columns that are categories nevertheless.")
    max_categories: int = Field(
        10_000, description="Distinct values that a category column may have.", ge=2, le=1_000_000
    )
    max_gigabytes: float = Field(
        1000.0, description="Size that a compressed source may open to, in GB.", gt=0
    )
    row_group_rows: int = Field(
        16_384, description="Rows in a row group of a converted source.", ge=1, le=10_000_000
    )
    verify: bool = Field(False, description="Read every file's content again for its digest.")

    @property
    def shown(self) -> str:
        """The source without secrets."""
        return redact(self.source)

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if self.target and self.target in (self.features or ()):
            raise ValueError(f"the target {self.target!r} is among data.features")
        if self.target and self.target == self.weight:
            raise ValueError(f"{self.target!r} is both data.target and data.weight")
        if self.query and self.table:
            raise ValueError("set data.query or data.table, not both")
        if self.separator and (self.separator in '"\r\n' or not self.separator.isascii()):
            raise ValueError(
                f"data.separator is {self.separator!r}: it should be one ASCII character, and no "
                "quote or line end"
            )
        return self


class SplitConfig(Section):
    """Which rows train, which stop training early (valid), which judge the model (test)."""

    kind: Literal["hash", "group", "time", "column"] = Field(
        "hash", description="By row position, by a group column, by time, or by a label column."
    )
    valid: Share = Field(0.1, description="Share of valid rows; 0 for none.")
    test: Share = Field(0.2, description="Share of test rows.")
    seed: int = Field(0, description="Another seed deals other rows (hash and group).", ge=0)
    column: str | None = Field(None, description="The group, time or label column.")
    valid_from: datetime | date | None = Field(
        None, description="First time of the valid rows (time), in place of a share."
    )
    test_from: datetime | date | None = Field(
        None, description="First time of the test rows (time), in place of a share."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SplitConfig":
        if self.kind == "hash" and self.column:
            raise ValueError("split.column is for the kinds group, time and column, not hash")
        if self.kind != "hash" and not self.column:
            raise ValueError(f"split.kind={self.kind} needs split.column")
        if self.kind != "time" and (self.valid_from or self.test_from):
            raise ValueError("split.valid_from and split.test_from are for split.kind=time")
        if self.valid_from and not self.test_from:
            raise ValueError("split.valid_from needs split.test_from beside it")
        if self.test_from and not self.valid_from and self.valid:
            raise ValueError(
                "split.test_from needs split.valid_from beside it, or split.valid=0 for no valid "
                "rows"
            )
        if self.kind != "column" and self.valid + self.test >= 1:
            raise ValueError(
                f"split.valid + split.test is {self.valid + self.test:g}: no rows left to train on"
            )
        if self.kind != "column" and not self.test and not self.test_from:
            raise ValueError("split.test is 0: nothing would judge the model")
        return self


class NormalizeConfig(Section):
    """How numeric features are scaled before they are cast to 32 bits."""

    kind: Literal["standard", "minmax", "none"] = Field(
        "standard", description="Mean 0 and deviation 1, range 0 to 1, or as they are."
    )


class BoostConfig(Section):
    """XGBoost's tree parameters for squared error, under scikit-learn's names."""

    n_estimators: int = Field(100, description="Boosting rounds.", ge=1, le=100_000)
    max_depth: int = Field(
        3, description="Depth of a tree; 0 for no limit (lossguide).", ge=0, lt=2**31
    )
    learning_rate: Fraction = Field(0.1, description="Shrinkage of every tree.")
    min_child_weight: float = Field(1.0, description="Least weight of a leaf's rows.", ge=0)
    gamma: float = Field(0.0, description="Least loss reduction of a split.", ge=0)
    reg_alpha: float = Field(0.0, description="L1 regularisation of leaf values.", ge=0)
    reg_lambda: float = Field(1.0, description="L2 regularisation of leaf values.", ge=0)
    max_delta_step: float = Field(0.0, description="Largest leaf value; 0 for no limit.", ge=0)
    max_leaves: int = Field(0, description="Leaves of a tree; 0 for no limit.", ge=0, lt=2**31)
    max_bin: int = Field(256, description="Bins of a feature.", ge=2, le=65_536)
    grow_policy: Literal["depthwise", "lossguide"] = Field(
        "depthwise", description="Grow level by level, or where the loss falls most."
    )
    tree_method: Literal["hist"] = Field("hist", description="Histograms; nothing else streams.")
    subsample: Fraction = Field(1.0, description="Share of rows that each round sees.")
    colsample_bytree: Fraction = Field(1.0, description="Share of features for a tree.")
    colsample_bylevel: Fraction = Field(1.0, description="Share of features for a level.")
    colsample_bynode: Fraction = Field(1.0, description="Share of features for a split.")
    num_parallel_tree: int = Field(
        1, description="Trees of a round (a boosted forest, with column sampling).", ge=1, le=10_000
    )
    max_cat_to_onehot: int = Field(
        4, description="Categories up to which a split is one against the rest.", ge=1
    )
    max_cat_threshold: int = Field(
        64, description="Categories that a split considers at most.", ge=1
    )
    monotone_constraints: dict[str, Literal[-1, 0, 1]] = Field(
        {}, description="By feature: 1 for rising, -1 for falling predictions."
    )
    interaction_constraints: tuple[Names, ...] = Field(
        (), description="Lists of features that may meet in one branch."
    )
    seed: int = Field(0, description="Seed of row and column sampling.", ge=0, lt=2**31)
    early_stopping_rounds: int | None = Field(
        None, description="Stop after so many rounds without a better valid RMSE.", ge=1
    )
    checkpoint_every: int = Field(20, description="Rounds between two checkpoints.", ge=1)
    column_chunk: int | None = Field(
        None,
        description="With column sampling: rounds of one seed, a divisor of checkpoint_every "
        "(which is its default); another value gives another model.",
        ge=1,
    )

    @property
    def samples_columns(self) -> bool:
        return min(self.colsample_bytree, self.colsample_bylevel, self.colsample_bynode) < 1

    @property
    def chunk(self) -> int | None:
        """Rounds that share a seed, None where no columns are sampled."""
        return (self.column_chunk or self.checkpoint_every) if self.samples_columns else None

    @model_validator(mode="after")
    def _consistent(self) -> "BoostConfig":
        if not self.max_depth and not self.max_leaves:
            raise ValueError("boost.max_depth=0 (no limit) needs boost.max_leaves")
        if not self.max_depth and self.grow_policy == "depthwise":
            raise ValueError("boost.max_depth=0 (no limit) needs boost.grow_policy=lossguide")
        if self.num_parallel_tree > 1 and not self.samples_columns:
            raise ValueError(
                "boost.num_parallel_tree > 1 needs column sampling (boost.colsample_bynode=0.8, "
                "say): without it all trees of a round are the same"
            )
        if self.chunk and self.checkpoint_every % self.chunk:
            raise ValueError(
                f"boost.column_chunk={self.chunk} does not divide "
                f"boost.checkpoint_every={self.checkpoint_every}"
            )
        return self


class EvaluateConfig(Section):
    """What is measured beside the metrics that every run gets."""

    by: Names = Field((), description="Columns for whose every category metrics are given.")
    bootstrap: int = Field(
        400, description="Replicates of the interval of the test R²; 0 for none.", ge=0, le=10_000
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Coverage of that interval."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluateConfig":
        if 0 < self.bootstrap < 100:
            raise ValueError("evaluate.bootstrap takes 100 replicates or more, or 0 for none")
        return self


class TrackConfig(Section):
    """How MLflow remembers the run."""

    experiment: str = Field("boostline", description="MLflow experiment.", min_length=1)
    model: Annotated[str | None, AfterValidator(_a_plain_name)] = Field(
        None, description="Registers the model under this name.", pattern=r"^[^/:]+$"
    )
    run_name: str | None = Field(None, description="Name of the run; made up if unset.")
    tags: dict[str, str] = Field({}, description="Tags of the run.")
    timeout: float = Field(120, description="Seconds that a run waits for MLflow to answer.", gt=0)


class Config(Section):
    """One training, whole."""

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    boost: BoostConfig = BoostConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    track: TrackConfig = TrackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.data.source != DEMO and not self.data.target:
            raise ValueError("data.target is not set: which column is to be predicted?")
        no_valid = self.split.valid == 0 and not self.split.valid_from
        if self.boost.early_stopping_rounds and no_valid and self.split.kind != "column":
            raise ValueError(
                "boost.early_stopping_rounds needs valid rows: set split.valid above 0"
            )
        return self

    @property
    def target(self) -> str:
        """The target's name; the demo's is `target`."""
        return self.data.target or "target"


DEMO = "demo:regression"


def flatten(config: BaseModel) -> dict[str, Any]:
    """`{"boost.max_depth": 3, ...}`: every setting by its dotted name."""
    flat: dict[str, Any] = {}
    for section, values in config.model_dump(mode="json").items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = value
    return flat
