"""Clients of inference engines, and the routing table of the router. Importing it needs neither Django nor torch."""

from serving_client.arm_assignment import arm_of
from serving_client.engine_client import Completion, EngineClient, LoadedModel
from serving_client.exceptions import (
    AdapterAlreadyLoaded,
    AdapterNotLoaded,
    EngineError,
    EngineFailed,
    EngineRejected,
    EngineUnreachable,
)
from serving_client.protocol import (
    AliasRoute,
    CacheRule,
    Checks,
    RateLimit,
    RolloutRoute,
    RoutingTable,
    Sampling,
    Share,
    TokenRoute,
    VersionRoute,
)
from serving_client.sglang import SglangClient
from serving_client.tensorrt_llm import TensorRtClient

__all__ = [
    "AdapterAlreadyLoaded",
    "AdapterNotLoaded",
    "AliasRoute",
    "CacheRule",
    "Checks",
    "Completion",
    "EngineClient",
    "EngineError",
    "EngineFailed",
    "EngineRejected",
    "EngineUnreachable",
    "LoadedModel",
    "RateLimit",
    "RolloutRoute",
    "RoutingTable",
    "Sampling",
    "SglangClient",
    "Share",
    "TensorRtClient",
    "TokenRoute",
    "VersionRoute",
    "arm_of",
]
