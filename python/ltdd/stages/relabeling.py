"""Stage 5: soft labels from the teacher.

``static`` logits, one vector an image, are always made: they travel with the data set. ``fkd`` adds
the teacher's logits of every view of the student's training; the views themselves are regenerated
from seeds, so only the logits are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import EvaluationConfig, Labels, TeacherMode, deciding_settings
from ltdd.data.augmentation.student_views import View, ViewSchedule, render
from ltdd.data.image_spec import ImageSet, Normalization
from ltdd.data.packed_logits import PackedLogits, pack, packing_settings
from ltdd.engine.chunks import Chunks
from ltdd.engine.cuda_graphs import RecordedSteps
from ltdd.engine.distributed.units import Units
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.engine.storage.files import fingerprint, tensors_sha256
from ltdd.models.inference import check_logits, predict_logits
from ltdd.stages.label_calibration import calibration_strength, label_shift
from ltdd.stages.label_sources import (
    HardLabels,
    LabelSource,
    OnlineLabels,
    StaticLabels,
    StoredLabels,
    answer_views,
    as_asked,
)
from ltdd.stages.run import Learned, Run

VIEW_FIELDS = (
    "epochs",
    "batch_size",
    "crop_min_scale",
    "cutmix",
    "randaugment",
    "augmentation",
    "dsa_operations",
    "mixup",
    "cutmix_probability",
)
"""Fields of `EvaluationConfig` that decide the views, and with them their labels."""
VALUES_TOGETHER = 1 << 20  # of views that the teacher looks at at once; a batch where that is more


@dataclass(frozen=True)
class Calibration:
    """Shift that is subtracted from all logits of the teacher.

    Attributes:
        tau: strength, 0 without.
        shift: float32 (K,).
    """

    tau: float
    shift: Tensor


@dataclass(frozen=True)
class SoftLabels:
    """The labels of a set, and what gives labels to other images alike.

    Stages store the teacher's own logits. Calibration is applied when they are read, so that it
    needs no second table, and packing too, so that students learn from what is published.

    Attributes:
        run: the run.
        teacher: network that gives them.
        course: networks that label the views of the students' epochs in turn, the teacher alone or
            what it was before.
        images: the distilled images.
        shown: what students are shown of them.
        calibration: of all soft labels.
        static: of the un-augmented distilled images, (M, K): the teacher's, or those that recovery
            learned.
        views: of every view of what is shown, (epochs, M * f^2, K); None unless asked for.
    """

    run: Run
    teacher: Stored[nn.Module]
    course: Sequence[Stored[nn.Module]]
    images: Stored[ImageSet]
    shown: Stored[ImageSet]
    calibration: Calibration
    static: Stored[PackedLogits]
    views: Stored[PackedLogits] | None

    def source(
        self, kind: Labels, images: Stored[ImageSet], schedule: ViewSchedule
    ) -> Stored[LabelSource]:
        """Return labels of a kind for images and their views.

        Static labels of a distilled image are those of all that is decoded from it.
        """
        run, calibration = self.run, self.calibration
        own, device = images.key == self.shown.key, run.runtime.device
        match kind:
            case "hard":
                return Stored(HardLabels(), fingerprint([kind]))
            case "online":
                mode, shift = run.config.relabeling.teacher_mode, calibration.shift.to(device)
                asked = OnlineLabels(self.teacher.value, run.runtime, shift, mode)
                decides = [kind, self.teacher.key, calibration.tau]
                return Stored(asked, fingerprint(decides if mode == "eval" else [*decides, mode]))
            case "learned":
                return self.static.map(lambda packed: StaticLabels(packed[:], device))
            case "static":
                static = self.static
                if not own:
                    logits = static_logits(run, self.teacher, images)
                    static = pack_static(run, logits, calibration)
                times = len(images.value.labels) // static.value.shape[0]
                logits = static.map(lambda packed: packed[:].repeat_interleave(times, 0))
                return logits.map(lambda rows: StaticLabels(rows, device))
            case "fkd":
                views = self.views
                if views is None or not own or schedule != run.schedule:
                    views = label_schedule(run, self.course, images, schedule, calibration)
                return views.map(StoredLabels)


def relabel_images(
    run: Run,
    teacher: Stored[nn.Module],
    course: Sequence[Stored[nn.Module]],
    images: Stored[ImageSet],
    learned: Learned | None = None,
) -> SoftLabels:
    """Stage 5: return the teacher's labels of the images, or those that recovery learned."""
    if run.config.relabeling.labels == "learned":
        assert learned is not None
        assert learned.logits is not None
        packed = pack(learned.logits, run.config.relabeling)
        static = Stored(packed, tensors_sha256({"logits": packed[:]}))
        none, shown = Calibration(0.0, torch.zeros(())), run.shown(images)
        return SoftLabels(run, teacher, course, images, shown, none, static, None)
    logits = static_logits(run, teacher, images)
    calibration = calibrate_labels(run, logits, images)
    static, views, shown = pack_static(run, logits, calibration), None, run.shown(images)
    if run.config.relabeling.labels == "fkd":
        views = label_schedule(run, course, shown, run.schedule, calibration)
    return SoftLabels(run, teacher, course, images, shown, calibration, static, views)


def calibrate_labels(run: Run, logits: Stored[Tensor], images: Stored[ImageSet]) -> Calibration:
    """Return the calibration that the configuration asks for."""
    method, counts = run.config.relabeling.calibration, run.data.counts
    tau = run.config.relabeling.prior
    if method != "none":
        settings = {"calibration": method} | ({"prior": tau} if tau else {})

        def compute(runtime: Runtime) -> dict[str, Tensor]:
            given = logits.value - label_shift(tau, counts)
            strength = calibration_strength(given, images.value.labels, counts)
            return {"tau": torch.tensor(strength, dtype=torch.float64)}

        stored = run.stages.run("relabeling", settings, [logits, images], compute)
        tau += float(stored.value["tau"])
    return Calibration(tau, label_shift(tau, counts))


def pack_static(run: Run, logits: Stored[Tensor], calibration: Calibration) -> Stored[PackedLogits]:
    """Return the logits (M, K) of the images themselves, calibrated and packed."""
    packed = pack(logits.value - calibration.shift, run.config.relabeling)
    return Stored(packed, _packed_key(run, logits, calibration))


def label_schedule(
    run: Run,
    course: Sequence[Stored[nn.Module]],
    images: Stored[ImageSet],
    schedule: ViewSchedule,
    calibration: Calibration,
) -> Stored[PackedLogits]:
    """Return the logits (epochs, M, K) of every view of a schedule, calibrated and packed.

    Args:
        run: the run.
        course: teachers, each for an equal part of the epochs.
        images: what is shown.
        schedule: the views.
        calibration: of the logits.
    """
    mode = run.config.relabeling.teacher_mode

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        shown, normalization = images.value.images, run.data.normalization
        teachers = [teacher.value for teacher in course]
        logits = label_views(shown, teachers, schedule, normalization, runtime, mode)
        return {"logits": logits}

    settings = view_settings(schedule.config)
    if mode != "eval":
        settings["teacher_mode"] = mode
    stored = run.stages.run("relabeling", settings, [images, *course], compute)
    packed = pack(stored.value["logits"], run.config.relabeling)
    if calibration.tau:
        packed = dataclasses.replace(packed, shift=calibration.shift)
    return Stored(packed, _packed_key(run, stored, calibration))


def _packed_key(run: Run, logits: Stored[Any], calibration: Calibration) -> str:
    return fingerprint([logits.key, calibration.tau, packing_settings(run.config.relabeling)])


def view_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return what the key of views' labels holds of the settings."""
    return {k: v for k, v in deciding_settings(config).items() if k in VIEW_FIELDS}


def static_logits(run: Run, teacher: Stored[nn.Module], images: Stored[ImageSet]) -> Stored[Tensor]:
    """Return the teacher's logits (M, K) of the images themselves.

    They travel with the set, so in full precision, and are stored like every result: another number
    of threads would round them differently.
    """

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        exact = dataclasses.replace(runtime, precision="fp32")
        shown, normalization = images.value.images, run.data.normalization
        return {"logits": predict_logits(teacher.value, shown, normalization, exact)}

    stored = run.stages.run("relabeling", {"labels": "static"}, [images, teacher], compute)
    return stored.map(lambda tensors: tensors["logits"])


def _parts(block: range, epochs: int, teachers: int, most: int) -> Iterator[tuple[int, range]]:
    """Cut a block of epochs into parts of one teacher; yield its number with each.

    Args:
        block: consecutive epochs.
        epochs: of all.
        teachers: how many there are for them.
        most: epochs of a part.
    """
    start = block.start
    while start < block.stop:
        which = start * teachers // epochs
        last = -(-(which + 1) * epochs // teachers)  # the first epoch of the next one
        stop = min(start + most, last, block.stop)
        yield which, range(start, stop)
        start = stop


@torch.no_grad()
def label_views(
    images: Tensor,
    teachers: Sequence[nn.Module],
    schedule: ViewSchedule,
    normalization: Normalization,
    runtime: Runtime,
    mode: TeacherMode = "eval",
) -> Tensor:
    """Return the teachers' logits of every view of a schedule, each those of its epochs.

    A teacher looks at the views of several steps and epochs at once, in mode ``batch`` at those
    of one step.

    Args:
        images: uint8 (M, C, H, W), as they are stored, so that labels match the stored pixels.
        teachers: networks; the epochs are divided among them equally, in order.
        schedule: the views.
        normalization: of the images that the teacher was trained on.
        runtime: device and precision.
        mode: what the teacher's batch norms normalise by.

    Returns:
        float16 (epochs, M, K) on the CPU; row [e, i] belongs to the i-th image shown in epoch e.

    Raises:
        UserError: a logit is NaN, infinite or too large for float16.
    """
    asked, count = [as_asked(teacher, mode) for teacher in teachers], len(images)
    epochs = schedule.config.epochs
    images = images.to(runtime.device)
    mean, std = normalization.tensors(runtime.device)
    together = max(schedule.config.batch_size, VALUES_TOGETHER // images[0].numel())
    chunks = Chunks("relabeling", together, runtime)

    def label(which: int, views: tuple[View, ...], picked: tuple[Tensor, ...]) -> Tensor:
        batches = [render(view, own, mean, std) for view, own in zip(views, picked, strict=True)]
        answer = answer_views(asked[which], torch.cat(batches), mode, runtime, chunks)
        return answer.to(torch.float16)

    labeling = [
        RecordedSteps(partial(label, which), teacher, runtime)
        for which, teacher in enumerate(teachers)
    ]

    def label_block(block: range, runtime: Runtime) -> dict[str, Tensor]:
        pictures, rows = schedule.pictures(images, block.start), []
        for which, part in _parts(block, epochs, len(teachers), max(1, together // count)):
            shown = [
                (view, shown_images[view.indices.to(runtime.device, non_blocking=True)])
                for epoch, shown_images in zip(part, pictures, strict=False)
                for view in schedule.epoch(epoch)
            ]
            # What a teacher says by the batch depends on whose batch it is.
            at_once = 1 if mode == "batch" else max(1, together // len(shown[0][1]))
            made = [
                labeling[which](*zip(*shown[start : start + at_once], strict=True))
                for start in range(0, len(shown), at_once)
            ]
            logits = torch.cat(made).cpu().unflatten(0, (len(part), count))
            for epoch, own in zip(part, logits, strict=True):
                check_logits(own, f"relabeling: epoch {epoch}")
                progress.step(images=count)
            rows.append(logits)
        return {"logits": torch.cat(rows)}

    blocks = schedule.blocks(images)
    work = Units("relabeling", blocks, runtime, [len(block) for block in blocks])
    mine, done = (sum(len(blocks[n]) for n in numbers) for numbers in (work.mine, work.done))
    with runtime.progress(mine, "relabeling", done) as progress:
        made = work.map(label_block)
    table = torch.empty(epochs, *made[0]["logits"].shape[1:], dtype=torch.float16)
    for block in blocks:  # a block is freed as the table grows
        table[block.start : block.stop] = made.pop(0)["logits"]
    return table
