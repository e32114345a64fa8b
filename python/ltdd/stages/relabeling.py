"""Stage 5: soft labels from the teacher.

``static`` logits, one vector an image, are always made: they travel with the data set. ``fkd`` adds
the teacher's logits of every view of the student's training; the views themselves are regenerated
from seeds, so only the logits are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltdd.data.augmentation.student_views import View, ViewSchedule, render
from ltdd.engine.chunks import Chunks
from ltdd.engine.cuda_graphs import RecordedSteps
from ltdd.engine.runtime import Runtime
from ltdd.models.inference import check_logits, view_logits


@torch.no_grad()
def label_views(
    images: Tensor,
    teacher: nn.Module,
    schedule: ViewSchedule,
    mean: Tensor,
    std: Tensor,
    runtime: Runtime,
) -> Tensor:
    """Return the teacher's logits of every view of a schedule.

    Args:
        images: uint8 (M, C, H, W), as they are stored, so that labels match the stored pixels.
        teacher: network in evaluation mode.
        schedule: the views.
        mean, std: (C,), in units of [0, 1].
        runtime: device and precision.

    Returns:
        float16 (epochs, M, K) on the CPU; row [e, i] belongs to the i-th image shown in epoch e.

    Raises:
        UserError: a logit is NaN, infinite or too large for float16.
    """
    teacher.eval()
    epochs = schedule.config.epochs
    images = images.to(runtime.device)
    mean, std = mean.to(runtime.device), std.to(runtime.device)
    chunks = Chunks("relabeling", schedule.config.batch_size, runtime)
    table: Tensor | None = None

    def label(view: View, picked: Tensor) -> Tensor:
        batch = render(view, picked, mean, std)
        return view_logits(teacher, batch, runtime, chunks).to(torch.float16)

    labeling = RecordedSteps(label, teacher, runtime)
    with runtime.progress(epochs, "relabeling") as progress:
        for epoch, pictures in enumerate(schedule.pictures(images)):
            made = [
                labeling(view, pictures[view.indices.to(runtime.device, non_blocking=True)])
                for view in schedule.epoch(epoch)
            ]
            logits = torch.cat(made).cpu()
            check_logits(logits, f"relabeling: epoch {epoch}")
            if table is None:  # in one piece: thousands of small ones would split up the heap
                table = logits.new_empty(epochs, *logits.shape)
            table[epoch] = logits
            progress.step(images=len(images))
    assert table is not None
    return table
