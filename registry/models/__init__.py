"""The registry's models and their transitions."""

from registry.models.adapter import Adapter, AdapterVersion, VersionStatus, without_bodies
from registry.models.alias import Alias, AliasMove
from registry.models.approval import Approval, ApprovalKind, ApprovalStatus, Signature
from registry.models.base_model import BaseModel, BaseModelStatus
from registry.models.blind_test import BlindTest, BlindVote
from registry.models.decision import RolloutDecision
from registry.models.dossier import Dossier
from registry.models.evaluation import ServedComparison, VersionEvaluation
from registry.models.feedback import Feedback
from registry.models.fleet.cluster import Cluster
from registry.models.fleet.grant import ClusterGrant
from registry.models.fleet.replica import Replica
from registry.models.response import Response, UsageDay
from registry.models.rollout import Rollout
from registry.models.rollout_measurement import RolloutMinute, RolloutUnit
from registry.models.rollout_states import RolloutStatus
from registry.models.staged_file import StagedFile

__all__ = [
    "Adapter",
    "AdapterVersion",
    "Alias",
    "AliasMove",
    "Approval",
    "ApprovalKind",
    "ApprovalStatus",
    "BaseModel",
    "BaseModelStatus",
    "BlindTest",
    "BlindVote",
    "Cluster",
    "ClusterGrant",
    "Dossier",
    "Feedback",
    "Replica",
    "Response",
    "Rollout",
    "RolloutDecision",
    "RolloutMinute",
    "RolloutStatus",
    "RolloutUnit",
    "ServedComparison",
    "Signature",
    "StagedFile",
    "UsageDay",
    "VersionEvaluation",
    "VersionStatus",
    "without_bodies",
]
