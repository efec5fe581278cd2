"""A booster's bytes, and the device that it trained on."""

import json
from typing import Any

import xgboost as xgb

from tasks.engine.errors import UserError
from tasks.engine.frames import Device


def checked_device(booster: Any, device: Device) -> Device:
    """The device that was asked for, once the booster says that it was taken.

    XGBoost trains on the CPU without a word where it finds no GPU.

    Raises:
        UserError: it trained on another.
    """
    used = str(json.loads(booster.save_config())["learner"]["generic_param"]["device"])
    if used.partition(":")[0] != device:
        raise UserError(
            f"The model was asked to train on {device} but XGBoost trained on {used}: this worker "
            "sees no usable GPU, or its XGBoost is built without CUDA. Use a cluster with GPUs, or "
            "one of CPUs throughout."
        )
    return device


def raw_of(booster: Any) -> bytes:
    return bytes(booster.save_raw("ubj"))


def finish(raw: bytes, rounds: int) -> bytes:
    """The first `rounds` rounds as UBJSON with base_score 0: it predicts y - mean.

    The bytes depend on the trees alone, not on how the training came by them.
    """
    booster = xgb.Booster()
    booster.load_model(bytearray(raw))
    final = booster[:rounds]
    final.set_attr(**dict.fromkeys(final.attributes()))
    # load_config would leave the old value in what is predicted and saved
    final.set_param({"base_score": 0})
    return raw_of(final)
