"""Examples of every request body, shown in the API description."""

from __future__ import annotations

from typing import Any

ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
OLD, NEW = "european-law.eu-compliance.v3-0123456789ab", "european-law.eu-compliance.v4-ba9876543210"
RUN = {
    "project": "european-law",
    "adapter": "eu-compliance",
    "dataset": 17,
    "method": "lora",
    "rank_analysis": ID,
    "hyperparameters": {"steps": 200, "learning_rate": 0.0005},
}
REASON = {"reason": "new articles"}

EXAMPLES: dict[str, Any] = {
    "AccountNameRequest": {"name": "ci-robot"},
    "AdviceRequestRequest": {"base_model": "smollm2-135m-instruct", "rows": 5000, "mean_tokens": 180},
    "CloneRequest": {"hyperparameters": {"seed": 1}},
    "DeclarationRequest": {
        "project": "european-law",
        "adapter": {"slug": "eu-compliance", "tags": ["eu"]},
        "base": "smollm2-135m-instruct",
        "dataset": 17,
        "budget": {"uniform_rank": 8},
        "hyperparameters": {"steps": 200},
        "gates": {"no_worse": True},
        "rollout": {
            "alias": "compliance",
            "steps": [{"weight": 10, "hold_s": 3600, "min_samples": 200}],
            "guardrails": [{"metric": "error_rate", "margin": 1}],
            **REASON,
        },
    },
    "EstimateRequestRequest": {"base_model": "smollm2-135m-instruct", "method": "lora"},
    "FeedbackRequest": {"response_id": "0f8fad5bd9cb469fa16570867728950e", "outcome": "good"},
    "HandOverRequest": {"name": "ci-robot", "owner": "olga", **REASON},
    "KeepingRequest": {"hold": True, "reason": "a case is open"},
    "MoveRequest": {"version": NEW, "expected_version": OLD, **REASON},
    "NewAccountRequest": {"project": "european-law", "name": "ci-robot", "role": "trainer"},
    "NewAdapterRequest": {"project": "european-law", "slug": "eu-compliance", "base_model": "smollm2-135m-instruct"},
    "NewMemberRequest": {"user": "olga", "role": "operator"},
    "NewInvitationRequest": {"address": "olga@example.org", "role": "operator", "reason": "joins the team"},
    "NewAliasRequest": {"project": "european-law", "name": "compliance", "cluster": "laptop", "version": OLD},
    "NewApprovalRequest": {"rollout": ID, **REASON},
    "NewBaseModelRequest": {"slug": "smollm2-135m-instruct", "source": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "NewBlindTestRequest": {
        "adapter": "eu-compliance",
        "versions": [3, 4],
        "prompts": ["By when must a major incident be reported?"],
    },
    "NewClusterRequest": {"project": "european-law", "slug": "laptop", "base_model": "smollm2-135m-instruct"},
    "NewCompressionRequest": {"budget": {"uniform_rank": 4}},
    "NewDatasetRequest": {"project": "european-law", "file": "(the file's bytes)"},
    "NewEvaluationRequest": {"project": "european-law", "version": NEW, "dataset": 17, "against": OLD},
    "NewGrantRequest": {"project": "us-law", "reason": "they rent the GPUs"},
    "NewRankAnalysisRequest": {
        "project": "european-law",
        "base_model": "smollm2-135m-instruct",
        "dataset": 17,
        "budget": {"uniform_rank": 8},
    },
    "NewReplicaRequest": {"cluster": "laptop", "url": "http://127.0.0.1:8100"},
    "NewRolloutRequest": {
        "alias": "compliance",
        "candidate": NEW,
        **REASON,
        "steps": [{"weight": 10, "hold_s": 3600, "min_samples": 200}, {"weight": 50, "hold_s": 3600}],
        "guardrails": [{"metric": "error_rate", "margin": 1}],
    },
    "NewTokenRequest": {"project": "european-law", "name": "ci", "scopes": ["read", "train", "publish"]},
    "NewTrainingRunRequest": RUN,
    "NewWebhookRequest": {"project": "european-law", "url": "https://hooks.example.org/ah", "events": ["rollout:*"]},
    "PatchedAdapterChangeRequest": {"tags": ["eu", "finance"]},
    "PatchedEditRolloutRequest": {**REASON, "steps": [{"weight": 5, "hold_s": 7200}], "expected_generation": 1},
    "PatchedProjectChangeRequest": {"named_versions": "any", **REASON},
    "PatchedPolicyRequest": {"policy": {"quorum": 1}},
    "OptionalReasonRequest": {"reason": "the data was wrong"},
    "PersonRequest": REASON,
    "ProjectRequest": {"slug": "european-law", "name": "European law"},
    "ReallocationRequest": {"budget": {"parameters": 900000}},
    "ReasonRequest": REASON,
    "RevokedInvitationRequest": {"id": ID, "reason": "sent by mistake"},
    "RevokedMemberRequest": {"user": "olga", "role": "operator", "reason": "left the team"},
    "SigningRequest": REASON,
    "SigningTokenRequest": REASON,
    "TransitionRequest": {**REASON, "expected_generation": 3},
    "PatchedBaseModelChangeRequest": {"also_named": ["unsloth/SmolLM2-135M-Instruct"], "reason": "the same weights"},
    "HeaderRequest": {"adapter_config": "(the file's bytes)", "header": "(its first bytes)", "size": 461952},
    "UploadRequest": {"adapter_model": "(the file's bytes)", "adapter_config": "(the file's bytes)"},
    "VoteRequest": {"letter": "A"},
    "WithdrawnGrantRequest": {"project": "us-law", **REASON},
    "WeightRequest": {**REASON, "weight": 25},
}
