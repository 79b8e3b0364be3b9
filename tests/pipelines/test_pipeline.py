from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intune.pipelines
from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError
from intune.pipelines.plan import ShuffleSpec
from intune.pipelines.stages import Batch, Load, Map, Shuffle, Transfer


def same(block: dict[str, Any]) -> dict[str, Any]:
    return block


def rowwise(block: dict[str, Any]) -> dict[str, Any]:
    return block


rowwise.rowwise = True  # type: ignore[attr-defined]


def test_the_order_of_the_calls_is_the_order_of_the_stages() -> None:
    pipe = (
        Pipeline.from_parquet("x").shuffle(4, seed=9).batch(32, drop_last=True).map(same).map(same).to("cpu")
    )
    assert pipe.stage_names == ("load", "shuffle", "batch", "transform", "transform-2", "transfer")
    assert [type(stage) for stage in pipe.stages] == [Load, Shuffle, Batch, Map, Map, Transfer]
    order = pipe.order()
    assert order.steps == (
        ("shuffle", "shuffle"), ("batch", "batch"), ("transform", "map"), ("transform-2", "map"),
        ("transfer", "transfer"),
    )  # fmt: skip
    assert order.shuffle == ShuffleSpec(row_groups=4, seed=9)
    assert (order.batch_size, order.drop_last, order.mixes_rows) == (32, True, True)
    assert Pipeline.from_parquet("x").batch(2).shuffle().order().mixes_rows is False
    assert Pipeline.from_parquet("x").batch(2).order().shuffle is None


def test_a_pipeline_never_changes_every_call_returns_a_longer_one() -> None:
    base = Pipeline.from_parquet("x")
    first, second = base.batch(2), base.shuffle()
    assert base.stage_names == ("load",)
    assert first.stage_names == ("load", "batch")
    assert second.stage_names == ("load", "shuffle")
    with pytest.raises(dataclasses.FrozenInstanceError):
        base.stages = ()  # type: ignore[misc]


def test_what_can_be_asked_of_a_pipeline() -> None:
    pipe = (
        Pipeline.from_parquet([Path("a"), "b"], columns="C*", fill=0, retries=7)
        .batch(2)
        .map(same, name="clean")
    )
    assert pipe.load.source.paths == ("a", "b")
    assert pipe.load.source.columns == ("C*",)
    assert pipe.load.retries == 7
    assert [stage.name for stage in pipe.maps] == ["clean"]
    assert pipe.device == "cpu"
    assert pipe.to("cuda:1").device == "cuda:1"


def test_a_function_says_itself_that_rows_do_not_matter_to_each_other_unless_the_call_does() -> None:
    base = Pipeline.from_parquet("x").batch(2)
    assert [base.map(function).maps[0].rowwise for function in (same, rowwise)] == [False, True]
    assert base.map(rowwise, rowwise=False).maps[0].rowwise is False
    assert base.map(same, rowwise=True).maps[0].rowwise is True


BASE = Pipeline.from_parquet("x")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BASE.shuffle().shuffle(), "`shuffle` is there already"),
        (lambda: BASE.batch(2).batch(2), "`batch` is there already"),
        (lambda: BASE.batch(2).to("cpu").map(same), r"`.to\(device\)` is the last stage"),
        (lambda: BASE.batch(2).to("cpu").to("cpu"), r"`.to\(device\)` is the last stage"),
        (lambda: BASE.batch(2).map(same, name="load"), "`name`='load' is the name of another stage"),
        (lambda: BASE.batch(2).map(same, name="a").map(same, name="a"), "`name`='a' is the name of another"),
        (lambda: BASE.batch(0), "`batch_size`=0 must be a whole number, 1 or more"),
        (lambda: BASE.batch(2.5), "`batch_size`=2.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: BASE.batch(True), "`batch_size`=True must be a whole number"),
        (lambda: BASE.batch("8"), "`batch_size`='8' must be a whole number"),  # type: ignore[arg-type]
        (lambda: BASE.shuffle(0), "`row_groups`=0 must be a whole number, 1 or more"),
        (lambda: BASE.shuffle(seed=-1), "`seed`=-1 must be a whole number, 0 or more"),
        (lambda: BASE.map(3), "`function` must be callable, but int was given"),  # type: ignore[arg-type]
        (lambda: BASE.map(same, workers="gpu"), "`workers`='gpu' is unknown; use 'thread'"),  # type: ignore[arg-type]
        (lambda: BASE.map(same, timeout=0), "`timeout`=0 must be seconds above 0"),
        (lambda: BASE.map(same, timeout=float("inf")), "`timeout`=inf must be seconds"),
        (lambda: BASE.map(same, timeout="1s"), "`timeout`='1s' must be seconds"),  # type: ignore[arg-type]
        (lambda: BASE.batch(2).to("tpu"), "`device`='tpu' is unknown; use 'cpu', 'cuda' or 'cuda:N'"),
        (lambda: BASE.batch(2).to("cuda:x"), "`device`='cuda:x' is unknown"),
        (lambda: BASE.batch(2).to(3), "`device`='3' is unknown"),  # type: ignore[arg-type]
        (lambda: Pipeline.from_parquet("x", retries=-1), "`retries`=-1 must be a whole number, 0 or more"),
        (lambda: Pipeline.from_parquet([]), "`paths` is empty"),
        (lambda: BASE.order(), r"the pipeline has no batches; add `.batch\(size\)`"),
        (lambda: BASE.loader(), r"the pipeline has no batches; add `.batch\(size\)`"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_written(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_numbers_of_numpy_are_numbers() -> None:
    order = BASE.shuffle(np.int64(2), seed=np.uint8(3)).batch(np.int32(4)).order()
    assert order.shuffle is not None
    kept = (order.shuffle.row_groups, order.shuffle.seed, order.batch_size)
    assert kept == (2, 3, 4)
    assert {type(number) for number in kept} == {int}


def test_every_public_name_is_there() -> None:
    for name in intune.pipelines.__all__:
        assert getattr(intune.pipelines, name).__doc__
