"""What every part of a run works with: its configuration, data, surroundings and stored stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import DistillConfig, ExpertsConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.checkpoint import DEFAULT_SECONDS
from ltdd.engine.events import EVENTS, EventLog, Sink
from ltdd.engine.files import fingerprint
from ltdd.engine.runtime import Runtime, choose_kernels, keep_freed_memory
from ltdd.engine.stage_runner import StageRunner
from ltdd.engine.surroundings import user_path
from ltdd.models import Network, build_model
from ltdd.models.ensemble import MeanLogits
from ltdd.models.inference import predict_logits
from ltdd.models.weights import Weights, load_weights, read_weights
from ltdd.stages.experts import train_expert

# Fields that say which networks there are, not how one is trained.
WHO_FIELDS = frozenset(
    {
        "observer",
        "teacher",
        "extra_observers",
        "extra_teachers",
        "observer_weights",
        "teacher_weights",
        "class_map",
    }
)


def given_weights(settings: ExpertsConfig, file: str) -> Weights:
    """Read a weights file that the configuration names, with the class map."""
    class_map = settings.class_map
    return read_weights(user_path(file), None if class_map is None else user_path(class_map))


@dataclass(frozen=True)
class Context:
    """One configuration over one data set, with the stages stored below one folder.

    Attributes:
        config: everything that decides the result.
        data: the long-tailed data, drawn once and shared by every stage.
        out: run folder, locked by the caller.
        log: receives structured events.
        runtime: device, precision, seed, progress.
        stages: gives stages their results from the folder, or has them computed.
    """

    config: DistillConfig
    data: LongTailedData
    out: Path
    log: EventLog
    runtime: Runtime
    stages: StageRunner

    @classmethod
    def create(
        cls,
        config: DistillConfig,
        data: LongTailedData,
        out: Path,
        *,
        quiet: bool,
        stored: frozenset[str] = frozenset(),
        checkpoint_seconds: float = DEFAULT_SECONDS,
        pool: Path | None = None,
        logs: Path | None = None,
        sinks: Sequence[Sink] = (),
    ) -> Context:
        """Prepare a run.

        Args:
            config: everything that decides the result.
            data: the long-tailed data.
            out: run folder, already locked.
            quiet: no progress output.
            stored: names of stages that must be found in the folder, never computed.
            checkpoint_seconds: time between two saves of an unfinished stage.
            pool: folder of stage results shared with other runs.
            logs: folder of the event log; None takes the run folder.
            sinks: receive every event beside the log.
        """
        log = EventLog((logs or out) / EVENTS, sinks)
        runtime = Runtime.from_config(config, log, quiet)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        common: dict[str, Any] = {
            "split": data.split_sha256,
            "pixels": data.content_sha256,
            "image_size": data.image_size,
            "normalization": [data.mean, data.std],
            "horizontal_flip": config.horizontal_flip,
            "seed": config.seed,
            "precision": runtime.precision,
            "device": runtime.device.type,
        }
        if choose_kernels(runtime.device, config.deterministic):
            common["deterministic"] = True
        stages = StageRunner(out, common, runtime, log, stored, checkpoint_seconds, pool)
        return cls(config, data, out, log, runtime, stages)

    @property
    def mean(self) -> Tensor:
        """Mean of every channel, (C,), in units of [0, 1]."""
        return torch.tensor(self.data.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation of every channel, (C,), in units of [0, 1]."""
        return torch.tensor(self.data.std)

    def views(self) -> ViewSchedule:
        """Return the views every student of this run trains on."""
        size = self.data.image_size
        return ViewSchedule(
            self.config.seed,
            self.data.num_classes * self.config.ipc,
            size,
            size,
            self.config.horizontal_flip,
            self.config.evaluation,
        )

    def observers(self) -> list[tuple[nn.Module, str]]:
        """Stage 1: return the trained observers with their keys."""
        settings = self.config.experts
        first = self.expert("observer", settings.observer, settings, settings.observer_weights)
        extra = enumerate(settings.extra_observers, 2)
        return [first, *(self.expert(f"observer{n}", name, settings) for n, name in extra)]

    def teacher(self, observers: list[tuple[nn.Module, str]]) -> tuple[nn.Module, str]:
        """Stage 1: return the teacher and its key; several teachers give their mean logits."""
        settings = self.config.experts
        members = observers
        if settings.teacher != "same":
            members = [self.expert("teacher", settings.teacher, settings, settings.teacher_weights)]
        extra = enumerate(settings.extra_teachers, 2)
        members = members + [self.expert(f"teacher{n}", name, settings) for n, name in extra]
        if len(members) == 1:
            return members[0]
        models, keys = zip(*members, strict=True)
        return MeanLogits(models), fingerprint(list(keys))

    def expert(
        self, role: str, architecture: str, settings: ExpertsConfig, weights: str | None = None
    ) -> tuple[nn.Module, str]:
        """Stage 1: return one trained expert and its key.

        Args:
            role: observer, teacher or a baseline's name.
            architecture: a name that `build_model` knows.
            settings: how it is trained.
            weights: file to take in place of training.
        """
        given = None
        if weights is None:
            # A setting that is off does not count, so that results from before it are still found.
            recipe = {
                name: value
                for name, value in dataclasses.asdict(settings).items()
                if name not in WHO_FIELDS and value not in (None, "none")
            }
        else:
            given = given_weights(settings, weights)
            recipe = {"weights": given.sha256, "class_names": given.class_names}
        key = self.stages.key("experts", recipe | {"role": role, "architecture": architecture}, [])
        data, flip = self.data, self.config.horizontal_flip

        def build() -> Network:
            return build_model(architecture, data.num_classes, data.image_size, data.channels)

        def compute(runtime: Runtime) -> Mapping[str, Tensor]:
            if given is None:
                return train_expert(role, architecture, data, settings, flip, runtime).state_dict()
            model = build()
            load_weights(model, given, data.class_names)
            if given.class_names is None:
                runtime.tell(
                    "class_order_assumed",
                    f"experts: {given.path} names no classes; its outputs are taken to be those of "
                    "the data, in order; if they are not, give experts.class_map",
                    file=str(given.path),
                )
            return model.state_dict()

        stage = "experts" if role.startswith(("observer", "teacher")) else "evaluation"
        tensors = self.stages.run(stage, key, compute)
        model = build()
        model.load_state_dict(tensors)
        moved = model.to(self.runtime.device).to(memory_format=torch.channels_last)
        return moved.eval().requires_grad_(False), key

    def predict(self, model: nn.Module) -> Tensor:
        """Return the predicted classes (N,) of the test images."""
        logits = predict_logits(model, self.data.test_images, self.mean, self.std, self.runtime)
        return logits.argmax(1)
