"""The configuration: forms of a stage, what is checked, and what the keys of results hold."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import chain
from typing import Any

import numpy as np
import pytest

from ltdd.config import (
    STAGES,
    AnyExperts,
    ClusteredCrops,
    DistillConfig,
    EvaluationConfig,
    ExpertsConfig,
    InitializationConfig,
    Noise,
    NoRecovery,
    PlainExperts,
    RandomReal,
    RecoveryConfig,
    UniMixExperts,
    deciding_settings,
    form_of,
    override,
    with_form,
)
from ltdd.config.settings import fields_of
from ltdd.errors import UserError
from ltdd.recipes import configure


def test_a_form_has_the_fields_that_mean_something_in_it() -> None:
    fields = {form: {spec.name for spec in fields_of(form)} for form in chain(*STAGES.values())}
    assert fields[ExpertsConfig] - fields[PlainExperts] == {
        "resampling_power",
        "debias_power",
        "variant",
        "consistency_weight",
        "classification_weight",
        "projection_dim",
    }
    assert fields[PlainExperts] == fields[UniMixExperts]
    assert fields[InitializationConfig] - fields[ClusteredCrops] == {"images_per_class", "tiles"}
    assert fields[ClusteredCrops] == {"method", "crops_per_image", "crop_min_scale"}
    assert fields[RandomReal] == fields[Noise] == fields[NoRecovery] == {"method"}


@pytest.mark.parametrize("form", list(chain(*STAGES.values())))
def test_a_configuration_of_every_form_survives_json(form: Any) -> None:
    config = DistillConfig(**{form.STAGE: form()})
    again = DistillConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert type(getattr(again, form.STAGE)) is form


def test_replace_keeps_the_form_and_checks_the_value() -> None:
    plain = dataclasses.replace(PlainExperts(epochs=3), batch_size=8)
    assert plain == PlainExperts(epochs=3, batch_size=8)
    with pytest.raises(UserError, match=r"expected experts\.batch_size >= 2, got 1"):
        dataclasses.replace(plain, batch_size=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.epochs = 4  # type: ignore[misc]


def test_another_form_keeps_what_both_have() -> None:
    rldd = ExpertsConfig(epochs=3, debias_power=0.5, nesterov=True)
    plain: AnyExperts = with_form(rldd, "ce", momentum=0.5)
    assert plain == PlainExperts(epochs=3, nesterov=True, momentum=0.5)
    assert with_form(rldd, "rldd") == rldd
    assert with_form(NoRecovery(), "alignment") == RecoveryConfig()
    assert form_of("initialization") is InitializationConfig
    assert form_of("statistics") is STAGES["statistics"][0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExpertsConfig(epochs=0), "expected experts.epochs >= 1, got 0"),
        (lambda: ExpertsConfig(epochs=True), "experts.epochs to be a whole number, got True"),
        (lambda: ExpertsConfig(epochs="3"), "experts.epochs to be a whole number, got '3'"),
        (lambda: ExpertsConfig(epochs=3.0), "experts.epochs to be a whole number, got 3.0"),
        (lambda: ExpertsConfig(nesterov=1), "experts.nesterov to be true or false, got 1"),
        (lambda: ExpertsConfig(learning_rate=math.nan), "to be a finite number, got nan"),
        (lambda: ExpertsConfig(learning_rate=-1.0), "expected experts.learning_rate >= 0"),
        (lambda: ExpertsConfig(observer=3), "expected experts.observer to be text, got 3"),
        (lambda: ExpertsConfig(extra_observers="a"), "to be a list such as [random_real]"),
        (lambda: ExpertsConfig(epoch=3), "unknown field experts.epoch; did you mean experts.epo"),
        (lambda: ExpertsConfig(xyz=3), "unknown field experts.xyz; known: experts.observer, "),
        (lambda: ExpertsConfig(3), "expected fields of ExpertsConfig by name, got 3"),
        (
            lambda: ExpertsConfig(loss="ce"),
            "expected experts.loss rldd in ExpertsConfig, got 'ce'; that form is PlainExperts",
        ),
        (
            lambda: PlainExperts(consistency_weight=1.0),
            "experts.consistency_weight: a field of experts.loss rldd, got experts.loss ce",
        ),
        (
            lambda: RandomReal(crop_min_scale=0.5),
            "initialization.crop_min_scale: a field of initialization.method scored_crops or "
            "clustered_crops, got initialization.method random_real",
        ),
        (
            lambda: RecoveryConfig(iterations=0),
            "expected recovery.iterations >= 1, got 0; recovery.method none leaves the images",
        ),
        (lambda: DistillConfig(experts=Noise()), "to be ExpertsConfig or PlainExperts or UniMix"),
        (lambda: DistillConfig(ipc=10**5000, seed=-1), "expected seed between 0 and"),
        (lambda: DistillConfig(image_size=10**5000), "between 8 and 224, got a number of thousan"),
        (lambda: DistillConfig(imbalance_factor=10**400), "imbalance_factor"),
        (lambda: DistillConfig(device="gpu"), "to be one of auto, cpu, cuda, got 'gpu'"),
        (lambda: EvaluationConfig(ema_decay=1.0), "expected evaluation.ema_decay between 0 and"),
        (lambda: EvaluationConfig(baselines=["x"]), "expected evaluation.baselines among random"),
        (lambda: ExpertsConfig(nesterov=True, momentum=0.0), "momentum > 0 with experts.nesterov"),
        (lambda: ExpertsConfig(teacher_weights="f"), "to name the architecture of experts.teach"),
        (lambda: ExpertsConfig(warmup_epochs=2, schedule="one_cycle"), "got 'one_cycle'"),
        (lambda: DistillConfig.from_dict(3), "config: expected a mapping of fields, got 3"),
        (lambda: DistillConfig.from_dict({3: 4}), "config: unknown field 3"),
        (lambda: DistillConfig.from_dict({"recovery": {3: 4}}), "unknown field recovery.3"),
        (lambda: DistillConfig.from_dict({"recovery": []}), "recovery to be a mapping of fields"),
        (
            lambda: DistillConfig.from_dict({"recovery": {"method": ["none"]}}),
            "recovery.method to be one of alignment, none, ",
        ),
        (
            lambda: DistillConfig.from_dict({"recovery": {"method": "none", "iterations": 3}}),
            "recovery.iterations: a field of recovery.method alignment or ",
        ),
    ],
)
def test_a_wrong_configuration_is_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    message = str(caught.value)
    assert message.startswith("config: ")
    assert said in message
    assert "\n" not in message
    assert len(message) < 1_200


def test_numbers_of_numpy_and_lists_become_those_of_python() -> None:
    config = DistillConfig(
        ipc=np.int64(3),
        imbalance_factor=np.float32(2.5),
        evaluation=EvaluationConfig(epochs=np.uint8(7), learning_rate=1, baselines=["random_real"]),
    )
    assert json.dumps(config.to_dict()["evaluation"]["learning_rate"]) == "1.0"
    assert (type(config.ipc), type(config.imbalance_factor)) == (int, float)
    assert config.evaluation.baselines == ("random_real",)
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_changes_leave_out_what_another_form_lacks() -> None:
    base = {"ipc": 3, "experts": {"loss": "rldd", "epochs": 4, "debias_power": 0.5}}
    assert override(base, {"experts": {"loss": "ce"}})["experts"] == {"loss": "ce", "epochs": 4}
    assert override(base, {"experts": {"epochs": 5}})["experts"]["debias_power"] == 0.5
    # What the changes themselves say is never left out: it is refused.
    with pytest.raises(UserError, match=r"experts\.debias_power: a field of experts.loss rldd"):
        DistillConfig.from_dict(override(base, {"experts": {"loss": "ce", "debias_power": 1.0}}))


KEYS: dict[str, dict[str, Any]] = {
    "demo": {
        "experts": {
            "epochs": 60,
            "batch_size": 32,
            "learning_rate": 0.05,
            "nesterov": True,
            "weight_decay": 0.001,
            "schedule": "one_cycle",
            "resampling_power": 0.5,
        },
        "initialization": {"crop_min_scale": 0.6},
        "recovery": {"iterations": 200, "alignment_weight": 0.05, "crop_min_scale": 0.6},
        "evaluation": {
            "epochs": 180,
            "learning_rate": 0.004,
            "schedule": "cosine",
            "crop_min_scale": 0.7,
        },
    },
    "cpu": {
        "experts": {
            "epochs": 50,
            "min_steps": 600,
            "batch_size": 128,
            "learning_rate": 0.05,
            "nesterov": True,
            "weight_decay": 0.001,
            "schedule": "one_cycle",
            "distil_temperature": 2.0,
            "randaugment": True,
        },
        "initialization": {"method": "clustered_crops", "crop_min_scale": 0.9},
        "recovery": {"iterations": 200, "alignment_weight": 0.5, "max_batch": 100},
        "relabeling": {"prior": 0.15},
        "evaluation": {
            "epochs": 3750,
            "optimizer": "muon",
            "learning_rate": 0.002,
            "crop_min_scale": 0.25,
            "randaugment": True,
        },
    },
    "paper": {
        "recovery": {"iterations": 75},
        "evaluation": {"logit_std_norm": True, "randaugment": True},
    },
}


@pytest.mark.parametrize("name", KEYS)
def test_the_keys_of_stored_results_stay(name: str) -> None:
    """A change here makes the stored results of every user's runs unfindable."""
    config = configure(preset_name=name, data="digits" if name == "demo" else "cifar10")
    config = config.of_classes(10)
    held = {stage: deciding_settings(getattr(config, stage)) for stage in STAGES}
    assert {stage: settings for stage, settings in held.items() if settings} == KEYS[name]


def test_a_form_is_in_the_key_unless_it_is_the_default_one() -> None:
    assert deciding_settings(ExpertsConfig(observer="vgg11", epochs=3)) == {"epochs": 3}
    assert deciding_settings(PlainExperts(epochs=3)) == {"loss": "ce", "epochs": 3}
    assert deciding_settings(NoRecovery()) == {"method": "none"}
    keys = [json.dumps(deciding_settings(form())) for form in STAGES["initialization"]]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "{}"
