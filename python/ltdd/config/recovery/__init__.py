"""Forms of stage 4: how the images come to what they are."""

from typing import TypeAlias, get_args

from ltdd.config.recovery.alignment import NoRecovery, RecoveryConfig
from ltdd.config.recovery.matching import DistributionMatching, GradientMatching
from ltdd.config.recovery.trajectory import TrajectoryRecovery
from ltdd.config.stage import STAGES

__all__ = [
    "AnyRecovery",
    "DistributionMatching",
    "GradientMatching",
    "NoRecovery",
    "RecoveryConfig",
    "TrajectoryRecovery",
]

AnyRecovery: TypeAlias = (
    RecoveryConfig | NoRecovery | GradientMatching | DistributionMatching | TrajectoryRecovery
)
STAGES["recovery"] = get_args(AnyRecovery)
