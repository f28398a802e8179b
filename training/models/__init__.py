"""The models of training and their transitions."""

from training.models.checkpoint_answer import CheckpointAnswer
from training.models.compression import Compression
from training.models.dataset import Dataset
from training.models.device import Device
from training.models.erasure import Erasure
from training.models.evaluation import Evaluation
from training.models.rank_analysis import RankAnalysis
from training.models.run_log import RunLog
from training.models.training_run import RunMetric, TrainingRun

__all__ = [
    "CheckpointAnswer",
    "Compression",
    "Dataset",
    "Device",
    "Erasure",
    "Evaluation",
    "RankAnalysis",
    "RunLog",
    "RunMetric",
    "TrainingRun",
]
