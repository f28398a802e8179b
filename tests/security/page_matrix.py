"""The meaning of each name in the pages' addresses, queries and forms, and the notes of what a page reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, QueryDict
from django.http.response import HttpResponseBase

from training.models import analysis_settings
from training.models.hyperparameters import TABLE

# First part of the address and parameter -> the kind of object that it names.
OF_PAGE = {
    "adapters number": "number",
    "adapters slug": "adapter",
    "aliases name": "open alias",
    "approvals pk": "approval",
    "approvals verb": "",
    "audit pk": "event",
    "base-models slug": "",
    "blind-tests pk": "blind test",
    "clusters slug": "cluster",
    "clusters verb": "",
    "compressions pk": "compression",
    "evaluations pk": "evaluation",
    "datasets pk": "dataset",
    "datasets verb": "",
    "answer-invitation pk": "invitation",
    "deliveries pk": "delivery",
    "invitations verb": "",
    "rank-analyses pk": "analysis",
    "rollouts pk": "rollout",
    "revoke-invitation pk": "sent invitation",
    "replicas pk": "replica",
    "replicas verb": "",
    "rollouts verb": "",
    "people pk": "",
    "people verb": "",
    "projects slug": "project",
    "settings slug": "project",
    "tokens name": "account",
    "tokens pk": "token",
    "tokens project": "project",
    "training pk": "run",
    "training verb": "",
    "webhooks pk": "webhook",
}
VERBS = {
    "clusters": "drain",
    "replicas": "drain",
    "base-models": "tiny",
    "people": 1,
    "invitations": "accept",
    "approvals": "reject",
    "datasets": "reject",
    "rollouts": "rollback",
    "training": "cancel",
}
# Query parameter or field of a form -> the kind of object that it names, or "". A key may begin with the page's name.
NAMES = (
    {
        "base-models q": "",
        "account": "account",
        "adapter": "adapter pk",
        "alias": "open alias pk",
        "clone": "run",
        "dataset": "dataset",
        "end": "sign-in",
        "expected": "version pk",
        "id": "response",
        "mixture": "dataset name",
        "models": "version",
        "object": "alias",
        "object_id": "rollout",
        "owner": "user",
        "project": "project",
        "q": "project",
        "rank_analysis": "analysis",
        "validation_dataset": "dataset",
        "version": "candidate pk",
        "webhook": "webhook",
        "who": "user",
        "new-alias cluster": "cluster pk",
        "project user": "user",
        "evaluate-version against": "version pk",
        "compare digest": "",
        "compare to": "number",
        "compare-plans to": "analysis",
        "compare-training-runs to": "run",
        "ask-all to": "number",
        "datasets project": "project pk",
        "dossier digest": "dossier",
        "grant-cluster project": "",
        "withdraw-grant project": "grantee",
    }
    | dict.fromkeys(
        """
    confirm_base evaluations fold keep listing modified offset pattern size staged task
    address also_named anyway at base_model cache_mb cache_s canary check code config days default description
    device_gb devices discovery distances draft encoding engine escape events expected_generation file file-clear folder
    format galore_rank held hold hub keeps_general_skill keeps_merged kind least_latency letter many_adapters
    mapping max_length max_lora_rank max_loras max_rank max_tokens meaning method more name named_versions
    object_type overrides page password plan preset preview priority prompt prompts quantum quorum rank rank_max
    rank_min reads reason recompute refusal replicas retention revision role routing samples scopes seen session sharded
    since slug sort source split start_values state status tag tags temperature theme uniform_rank until url variant
    variant_of verify weight
    confirm engine_key requests_per_s slots tokens_per_min by
    """.split(),  # noqa: SIM905 (a table)
        "",
    )
    | dict.fromkeys([*TABLE, *analysis_settings.NAMES], "")
)
# How a form writes the name of an object, where it writes more.
WRITTEN = {"mixture": "{}: 0.5"}
# Forms that pages take from a tenant who names only their own objects; `@kind` is the name of theirs. Others take a
# reason.
RUN = {
    "adapter": "@adapter pk",
    "dataset": "@dataset",
    "method": "lora",
    **{name: str(getattr(entry, "default", "")) for name, entry in TABLE.items()},
}
FORMS: dict[str, dict[str, Any]] = {
    "add-replica": {"url": "http://127.0.0.1:9"},
    "alias-policy": {"quorum": 0, "reason": "x"},
    "declare-variant": {"variant_of": "", "reason": "x"},
    "base-model": {"also_named": "acme/copy", "reason": "x"},
    "edit-adapter": {"description": "x"},
    "new-adapter": {"project": "@project", "slug": "fresh", "base_model": "tiny"},
    "new-alias": {"name": "fresh", "version": "@candidate pk", "cluster": "@cluster pk", "quorum": 0},
    "new-base-model": {"hub": "acme/model"},
    "new-cluster": {
        **{"project": "@project", "slug": "fresh", "base_model": "tiny", "engine": "vllm"},
        **{"max_lora_rank": 64, "max_loras": 8},
    },
    "project": {"user": "@user", "role": "viewer"},
    "revoke-role": {"held": "", "reason": "x"},
    "evaluate-version": {"dataset": "@dataset"},
    "upload-version": {"confirm_base": "x"},
    "upload-part": {"name": "a", "size": 5, "modified": 1},
    "datasets": {"project": "@project pk", "name": "fresh", "file": "@file"},
    "decide-erasure": {"reason": "x", "meaning": "approved"},
    "grant-cluster": {"project": "far"},
    "hand-over-service-account": {"owner": "@user", "reason": "x"},
    "invitations": {"project": "@project", "address": "somebody", "role": "viewer", "reason": "x"},
    "keep-dataset": {"retention": "none", "reason": "x"},
    "keep-training-run": {"retention": "none", "reason": "x"},
    "move-alias": {"version": "@candidate pk", "expected": "@version pk", "reason": "x"},
    "named-versions": {"named_versions": "any", "reason": "x"},
    "new-rank-analysis": {
        **{"base_model": "@base model pk", "dataset": "@dataset", "preset": "default", "uniform_rank": 4},
        **{"rank_max": 8, "quantum": 4, "samples": 2},
    },
    "new-training-run": RUN,
    "playground": {"models": "@version", "prompt": "the bank", "max_tokens": 4, "temperature": 0},
    "promote": {"alias": "@open alias pk", "plan": "", "weight": 5, "reason": "x"},
    "service-accounts": {"project": "@project", "name": "fresh", "role": "viewer"},
    "sessions": {"end": "@sign-in", "reason": "x"},
    "tokens": {"project": "@project", "name": "fresh", "scopes": "read", "days": 3, "account": "@account"},
    "vote": {"letter": "A"},
    "webhooks": {"project": "@project", "url": "https://hook.example/", "events": "token:*"},
    "withdraw-grant": {"project": "@grantee", "reason": "x"},
    "steer-cluster": {"confirm": "on", "reason": "x"},
    "steer-replica": {"confirm": "on", "reason": "x"},
    "ask-all": {"prompts": "the bank", "max_tokens": 4},
    "compress-version": {"uniform_rank": 2},
    "reduce-version": {"max_rank": 2},
}
QUERIES = {"compare": {"to": 1}, "ask-all": {"to": 1}}


class Noted(QueryDict):
    """A query or a form that notes the names which are read from it."""

    names: set[str]

    @classmethod
    def of(cls, values: QueryDict, names: set[str]) -> Noted:
        noted = cls(mutable=True)
        for name, each in values.lists():
            noted.setlist(name, each)
        noted.names = names
        return noted

    def note(self, name: Any) -> None:
        if hasattr(self, "names"):
            self.names.add(name)

    def __getitem__(self, name: Any) -> Any:
        self.note(name)
        return super().__getitem__(name)

    def __contains__(self, name: Any) -> bool:
        self.note(name)
        return super().__contains__(name)

    def getlist(self, name: Any, default: Any = None) -> Any:
        self.note(name)
        return super().getlist(name, default)

    def dict(self) -> Any:
        return self


QUERY_NAMES: set[str] = set()
FORM_NAMES: set[str] = set()


def noting(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware that notes the names which the page reads."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        request.GET = Noted.of(request.GET, QUERY_NAMES)
        request.POST = Noted.of(request.POST, FORM_NAMES)  # type: ignore[misc]
        return get_response(request)

    return middleware
