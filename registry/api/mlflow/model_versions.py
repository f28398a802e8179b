"""MLflow's model versions: versions of adapters, made of files that the artifact API received."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of, seen_in
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from adapterhub.workspace import scratch
from registry.api.mlflow.base import OURS, MlflowViewSet, TagSerializer, not_in_mlflow
from registry.api.mlflow.messages import aliases_of, artifact_uri, model_version
from registry.api.mlflow.search import (
    Condition,
    SearchSerializer,
    conditions,
    name_condition,
    ordered,
    page,
    unknown,
)
from registry.api.mlflow.sources import VERSION, place_of, received, staged_below
from registry.models import AdapterVersion, StagedFile
from registry.uploads.receiving import publish
from registry.uploads.staging import drop

WAYS = {
    "change": "A version is immutable: give its description to create_model_version.",
    "set_tag": "A version is immutable: give its tags to create_model_version. A registered model's can change.",
    "drop_tag": "A version is immutable, its tags, too.",
    "move_stage": "There are no stages: move an alias with set_registered_model_alias.",
    "remove": "Versions are evidence and never deleted: archive it, by `adapters/{slug}/versions/{n}/archive/`.",
}
# Choices of an upload that MLflow has no field for are tags of the new version.
CHOICES = {f"{OURS}fold": "fold", f"{OURS}keep": "keep", f"{OURS}confirm_base": "confirmation"}
# MLflow's client sends them along when it copies a version; the copy has its own.
WRITTEN = {f"{OURS}{name}" for name in ("served_name", "digest", "status", "base_model")}
TRUTH = {"true": True, "false": False}


class VersionSerializer(serializers.Serializer[Any]):
    """The name of a registered model and the number of its version."""

    name = serializers.CharField(max_length=250)
    version = serializers.CharField(max_length=9)


class NewVersionSerializer(serializers.Serializer[Any]):
    """The version to create: the adapter's name, the place of its files, and MLflow's run, description and tags."""

    name = serializers.CharField(max_length=250)
    source = serializers.CharField(max_length=1000)  # type: ignore[assignment]  # a name that DRF uses, too
    run_id = serializers.CharField(required=False, allow_blank=True, default="", max_length=250)
    run_link = serializers.CharField(required=False, allow_blank=True, default="", max_length=1000)
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=10_000)
    tags = TagSerializer(many=True, required=False, default=list)


class ModelVersionViewSet(MlflowViewSet):
    """Model versions of MLflow, which are versions of adapters."""

    scopes = {
        **dict.fromkeys(("create", "change", "set_tag", "drop_tag", "move_stage", "remove"), Scope.PUBLISH),
        **dict.fromkeys(("find", "search", "download_uri"), Scope.READ),
    }

    def answer(self, version: AdapterVersion) -> Response:
        """Return the response that describes the version in MLflow's form."""
        adapter = version.adapter
        aliases = aliases_of([adapter])[adapter.pk]
        return Response({"model_version": model_version(version, self.name_of(adapter), adapter, aliases)})

    def create(self, request: Request) -> Response:
        """Publish the adapter at the source as the next version, which is pending until its numbers are read.

        The staged files that it was made of are deleted.
        """
        fields = self.read(NewVersionSerializer)
        adapter = self.adapter(fields["name"])
        tags = {tag["key"]: tag["value"] for tag in fields["tags"]}
        if VERSION.fullmatch(place_of(fields["source"], request)):
            tags = {key: value for key, value in tags.items() if key not in WRITTEN}
        choices = choices_of(tags)
        with scratch() as folder:
            sent = received(fields["source"], adapter, request, folder / "given")
            origin = {name: fields[name] for name in ("source", "run_id", "run_link", "description") if fields[name]}
            version = publish(
                adapter,
                sent.folder,
                lineage={
                    "mlflow": origin | {"tags": tags},
                    **({"conversions": list(sent.notes)} if sent.notes else {}),
                },
                by=actor_of(request),
                **choices,
            )
        staged = staged_below(place_of(fields["source"], request), adapter)
        drop(StagedFile.objects.filter(pk__in=[file.pk for file in staged]))
        return self.answer(version)

    def find(self, request: Request) -> Response:
        """Return the version that the request names."""
        return self.answer(self.version(**self.names()))

    def names(self) -> dict[str, str]:
        """Return the name and the number in the query, as the arguments of `version`."""
        fields = self.query(VersionSerializer)
        return {"name": fields["name"], "number": fields["version"]}

    def download_uri(self, request: Request) -> Response:
        """Return the place of the version's files in the artifact API."""
        return Response({"artifact_uri": artifact_uri(self.version(**self.names()))})

    def search(self, request: Request) -> Response:
        """List the versions that the caller sees and that match the filter, in pages.

        The newest come first unless `order_by` says otherwise.
        """
        search = self.query(SearchSerializer)
        rows = seen_in(
            AdapterVersion.objects.select_related("adapter__project", "adapter__base_model", "created_by"),
            "adapter__project",
            request,
            Scope.READ,
        ).defer("config", "ranks", "report")
        for condition in conditions(search["filter"]):
            rows = rows.filter(lookup_of(condition))
        fields = {
            "name": "adapter__slug",
            "version_number": "number",
            "creation_timestamp": "created_at",
            "last_updated_timestamp": "created_at",
        }
        versions, further = page(ordered(rows, search["order_by"], fields, ["-created_at", "-pk"]), search)
        aliases = aliases_of({version.adapter_id: version.adapter for version in versions}.values())
        answers = [
            model_version(each, self.name_of(each.adapter), each.adapter, aliases[each.adapter_id]) for each in versions
        ]
        return Response({"model_versions": answers, **further})

    def refuse(self, way: str) -> Response:
        """Raise Invalid with the text WAYS[way], which says what to do instead.

        Raises Http404 or NotAllowed in its place for a version that the caller does not see or may not change.
        """
        sent = self.request.data if isinstance(self.request.data, dict) else {}
        self.version(str(sent.get("name", "")), str(sent.get("version", "")))
        raise not_in_mlflow(WAYS[way])

    def change(self, request: Request) -> Response:
        """Refuse to change a version."""
        return self.refuse("change")

    def set_tag(self, request: Request) -> Response:
        """Refuse to change a version's tags."""
        return self.refuse("set_tag")

    def drop_tag(self, request: Request) -> Response:
        """Refuse to change a version's tags."""
        return self.refuse("drop_tag")

    def move_stage(self, request: Request) -> Response:
        """Refuse to move a version between stages."""
        return self.refuse("move_stage")

    def remove(self, request: Request) -> Response:
        """Refuse to delete a version."""
        return self.refuse("remove")


def choices_of(tags: dict[str, str]) -> dict[str, Any]:
    """Remove the `hub.` tags from `tags` and return them as an upload's choices: `fold`, `keep` and `confirmation`.

    Choices without a tag get False or "". Raises Invalid for an unknown tag, and for a value that is not true or false.
    """
    choices: dict[str, Any] = {"fold": False, "keep": False, "confirmation": ""}
    for key in [key for key in tags if key.startswith(OURS)]:
        value = tags.pop(key)
        if key not in CHOICES:
            raise Invalid(f"There is no tag {key[:100]!r} to send; there are {', '.join(CHOICES)}.", field="tags")
        if CHOICES[key] == "confirmation":
            choices["confirmation"] = value[:2000]
        elif value.lower() in TRUTH:
            choices[CHOICES[key]] = TRUTH[value.lower()]
        else:
            raise Invalid(f"{key} is true or false, not {value[:50]!r}.", field="tags")
    return choices


def lookup_of(condition: Condition) -> Q:
    """Return the database lookup for one comparison of a search for versions.

    Raises Invalid for a field, or a comparison of it, that cannot be searched for.
    """
    known = "name =, !=, LIKE, ILIKE, IN, version_number =, run_id = and IN, source_path = and tags.<key> = and !="
    field, first = condition.field.lower(), (condition.values or ("",))[0]
    if field == "name":
        return name_condition(condition, "adapter__")
    if field == "version_number" and condition.verb == "=" and first.isdigit() and len(first) < 10:
        return Q(number=int(first))
    if field == "run_id" and condition.verb in ("=", "IN"):
        return Q(lineage__mlflow__run_id__in=list(condition.values))
    if field == "source_path" and condition.verb == "=":
        return Q(lineage__mlflow__source=first)
    head, _, key = condition.field.partition(".")
    if head.lower() in ("tag", "tags") and key and condition.verb in ("=", "!="):
        ours = {f"{OURS}{name}": name for name in ("served_name", "digest", "status")}
        same = Q(**{ours[key]: first}) if key in ours else Q(lineage__mlflow__tags__contains={key: first})
        return ~same if condition.verb == "!=" else same
    raise unknown(condition, known)
