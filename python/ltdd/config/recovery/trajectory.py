"""Images that lead networks along the paths of experts."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from ltdd.config.recovery.form import RecoveryForm
from ltdd.config.settings import Count, Names, Number, Weight, Whole, settings
from ltdd.config.stage import DSA_OPERATIONS, check_names
from ltdd.errors import UserError


@settings
class TrajectoryRecovery(RecoveryForm):
    """Matching of the paths that experts take (MTT, arXiv:2203.11932, and those that built on it).

    A student starts where an expert was after some epochs, takes steps on the synthetic images, and
    should end where the expert was some epochs later.
    """

    method: Literal["trajectory"] = "trajectory"
    network: str = "convnet3"
    """Architecture of experts and matched students; without batch norm."""
    trajectories: Count = 100
    """Experts, each from another initialisation."""
    trajectory_epochs: Count = 50
    """Epochs of an expert. Kept are the parameters after each epoch that is read, and the last."""
    trajectory_batch_size: Count = 256
    """Images per step of an expert."""
    trajectory_learning_rate: Weight = 0.01
    """Learning rate of the experts: SGD without momentum."""
    trajectory_weight_decay: Weight = 0.0
    """Weight decay of the experts."""
    sharpness: Literal["none", "gsam"] = "none"
    """`gsam` trains experts by adaptive GSAM, at twice the cost, so that their paths are smooth."""
    sharpness_radius: Weight = 0.01
    """rho of `gsam`."""
    sharpness_weight: Weight = 0.3
    """alpha of `gsam`; 0 is SAM."""
    dsa_operations: Names = DSA_OPERATIONS
    """What DSA chooses from for every batch of experts and of matched students; no `flip` where
    images may not be mirrored."""
    iterations: Count = 5000
    """Updates of images, labels and learning rate."""
    steps: Count = 30
    """T: steps that a student takes on the synthetic images."""
    expert_epochs: Count = 2
    """M: epochs of the expert that these steps shall replace."""
    start_min: Whole = 0
    """First epoch of an expert from which students start."""
    start_max: Count = 20
    """They start before this one."""
    curriculum_from: Count | None = None
    """Where `start_max` begins, to grow over `curriculum_iterations`; None: it stays."""
    curriculum_iterations: Count = 1000
    """Iterations until `start_max` is reached."""
    synthetic_batch: Count | None = None
    """Images per step of a student; None: all."""
    image_learning_rate: Weight = 100.0
    """Learning rate of the images, in units of normalised pixels; momentum 0.5."""
    learned_labels: bool = False
    """Learn the images' logits too; without, students learn class labels, which stay."""
    label_learning_rate: Weight = 2.0
    """Learning rate of the logits; momentum 0.9."""
    rate_learning_rate: Weight = 1e-5
    """Learning rate of the students' learning rate; momentum 0.5."""
    student_learning_rate: Annotated[Number, Interval(ge=1e-5, le=1)] = 0.01
    """The students' learning rate at the start."""
    threshold: Weight | None = None
    """Iterations with a larger loss change nothing; None: every one counts."""
    unroll: Literal["exact", "tesla"] = "exact"
    """Gradient through the student's steps: `exact`, or without what a step owes to earlier ones
    (`tesla`, arXiv:2211.10586)."""
    phases: Literal["one", "decoupled"] = "one"
    """`decoupled`: backbones are matched with class weights in the students' loss, and classifiers
    of a second training on a class-balanced order (DAMED)."""
    backbone_weight: Weight = 1.0
    """lambda1: weight of the gradients of backbones; `decoupled`."""
    classifier_weight: Weight = 1.0
    """lambda2: weight of the gradients of classifiers; `decoupled`."""
    classifier_steps: Count = 80
    """T of the classifiers; `decoupled`."""
    classifier_epochs: Count = 10
    """Epochs of the second training; `decoupled`."""

    @property
    def last_read(self) -> int:
        """Last epoch of an expert that is read, beside its end."""
        return self.start_max + self.expert_epochs

    def __post_init__(self) -> None:
        check_names("recovery.dsa_operations", self.dsa_operations, DSA_OPERATIONS)
        if not 0 <= self.start_min < (self.curriculum_from or self.start_max) <= self.start_max:
            raise UserError(
                "expected recovery.start_min < curriculum_from <= start_max, got "
                f"{self.start_min}, {self.curriculum_from}, {self.start_max}"
            )
        if self.trajectory_epochs < self.last_read:
            raise UserError(
                "expected recovery.trajectory_epochs of start_max + expert_epochs = "
                f"{self.last_read} or more, got {self.trajectory_epochs}"
            )
        if self.phases == "decoupled" and self.classifier_epochs < self.expert_epochs:
            raise UserError(
                f"expected recovery.classifier_epochs of expert_epochs = {self.expert_epochs} or "
                f"more, got {self.classifier_epochs}"
            )
