"""Settings of stages 5 and 6: labels, students and their baselines."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Interval

from ltdd.config.settings import (
    AreaShare,
    Count,
    Names,
    Number,
    Temperature,
    Weight,
    Whole,
    settings,
)
from ltdd.config.stage import (
    BASELINES,
    DSA_OPERATIONS,
    STAGES,
    Augmentation,
    Labels,
    Stage,
    TeacherMode,
    check_names,
)
from ltdd.errors import UserError

Probability = Annotated[Number, Interval(ge=0, le=1)]


@settings
class RelabelingConfig(Stage):
    """Soft labels from the teacher."""

    STAGE = "relabeling"

    labels: Labels = "fkd"
    """`static`: one logit vector per image; `fkd`: logits of every augmented view, replayed from
    seeds; `online`: the teacher labels each view while the student trains; `hard`: classes only;
    `learned`: one logit vector per image, which recovery learned with the images."""
    teacher_mode: TeacherMode = "eval"
    """What the teacher's batch norms normalise views by: `eval`, their running statistics, or
    `batch`, those of the student's batch (SRe2L's code, by accident); not with static labels."""
    prior: Weight = 0.0
    """tau: all soft labels lose tau * log(class frequency), which favours rare classes
    (arXiv:2007.07314)."""
    calibration: Literal["none", "adsa"] = "none"
    """`adsa` takes more of the class prior out of all soft labels, as far as makes the teacher
    equally sure of every class of the distilled images (arXiv:2511.17914)."""
    packing: Literal["none", "fp16", "topk"] = "fp16"
    """How labels are stored: `fp16` takes two bytes a value, `topk` keeps the largest logits and
    the mean of the others, `none` leaves static logits in float32."""
    packing_top: Count = 10
    """Logits of an image or view that `topk` keeps, fewer than there are classes."""

    def __post_init__(self) -> None:
        if self.labels == "static" and self.teacher_mode == "batch":
            raise UserError(
                "expected relabeling.labels fkd or online with teacher_mode batch, got 'static': "
                "an image alone has no batch"
            )


@settings
class EvaluationConfig(Stage):
    """Student training on the distilled set, and what it is compared with."""

    STAGE = "evaluation"
    # Which students there are; how each one is trained decides its result. Images are keyed as they
    # are shown, so after decoding.
    NOT_IN_KEYS = ("seeds", "baselines", "full_epochs", "decode")

    student: str = "convnet3"
    """Architecture of the student."""
    seeds: Count = 3
    """Number of students; accuracies are reported as mean and standard deviation."""
    epochs: Count = 1000
    """Passes over the distilled images."""
    max_steps: Count | None = None
    """Most training steps: many images get fewer epochs, at least one. None: all `epochs`."""
    batch_size: Count = 25
    """Images per step."""
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """Optimizer of the student; `muon` is for convolutions, with `adamw` for the rest."""
    learning_rate: Weight | None = 1e-3
    """Learning rate; None: the one that recovery learned with the images."""
    momentum: Weight = 0.875
    """Momentum of `sgd`."""
    weight_decay: Weight = 0.01
    """Weight decay, on matrices and convolution kernels only."""
    schedule: Literal["step", "cosine", "smoothed_cosine", "cos2", "halfway", "idc"] = "step"
    """`step`: x0.5 at 80, 90, 95 % of the epochs; `cosine` to zero; `smoothed_cosine` to half;
    `cos2`: as `smoothed_cosine` for 5/6 of the epochs, then drops to a sixth and falls to zero;
    `halfway`: x0.1 after half of the epochs and one; `idc`: x0.2 after 2/3 and again after 5/6."""
    loss: Literal["mse", "kl", "soft_ce", "cosine"] = "mse"
    """How the teacher's logits are learned: `mse` on raw logits; `kl`, divergence of probabilities;
    `soft_ce`, cross-entropy with them; `cosine`, one minus the cosine of raw logits."""
    temperature: Temperature = 1.0
    """Both sides' logits are divided by it in `kl` and `soft_ce`."""
    logit_weight: Weight = 1.0
    """kappa2: weight of the loss on the teacher's logits."""
    hard_weight: Weight = 0.025
    """kappa1: weight of the cross-entropy with the (mixed) class labels."""
    logit_std_norm: bool = False
    """Divide student and teacher logits by their own standard deviation over classes first."""
    decode: Annotated[Whole, Interval(ge=1, le=4)] = 1
    """f: a distilled image is cut into f x f, each enlarged to its full size, before all else."""
    augmentation: Augmentation = "crops"
    """`crops`: random resized crops; `padded`: moved by up to an eighth of the side; `dsa`: one of
    `dsa_operations` a batch; `idc`: several of them."""
    crop_min_scale: AreaShare = 0.08
    """Smallest area of `crops`."""
    dsa_operations: Names = DSA_OPERATIONS
    """What `dsa` and `idc` choose from; no `flip` where images may not be mirrored."""
    mixup: Weight = 0.0
    """MixUp of every batch with a share out of Beta(a, a); 0 without."""
    cutmix: bool = True
    """CutMix with a Beta(1, 1) area."""
    cutmix_probability: Probability = 1.0
    """Share of the batches that CutMix changes."""
    randaugment: bool = False
    """RandAugment(2, 9) before the crop."""
    ema_decay: Annotated[Number, Interval(ge=0, le=1 - 1e-9)] = 0.99
    """Decay per step of the averaged parameters that are evaluated; 0 takes the last iterate."""
    full_epochs: Count | None = None
    """Epochs of the `full_long_tailed` baseline over the long-tailed images; None: as experts."""
    baselines: Names = ("random_real", "full_long_tailed")
    """Baselines trained beside the student: `random_real` and `full_long_tailed`; for LRS also
    `distilled_hard` and `random_real_soft`; for ARS the latter, and `distilled_bare` and
    `random_real_bare`, which see no augmentation. `all_real_soft` bounds what any images can teach:
    students of all long-tailed images, with the teacher's labels, in as many steps."""

    def of_images(self, images: int) -> EvaluationConfig:
        """Return the settings with the epochs of a set that shows so many images an epoch."""
        if self.max_steps is None:
            return self
        steps = -(-images // self.batch_size)
        epochs = min(self.epochs, max(1, self.max_steps // steps))
        return dataclasses.replace(self, epochs=epochs, max_steps=None)

    def __post_init__(self) -> None:
        check_names("evaluation.baselines", self.baselines, BASELINES)
        check_names("evaluation.dsa_operations", self.dsa_operations, DSA_OPERATIONS)
        if self.mixup and self.cutmix:
            raise UserError(
                f"expected evaluation.cutmix false with evaluation.mixup {self.mixup:g}, got true: "
                "a batch is mixed in one way"
            )


STAGES["relabeling"] = (RelabelingConfig,)
STAGES["evaluation"] = (EvaluationConfig,)
