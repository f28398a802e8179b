"""MLflow's registered models: adapters, their descriptions and tags, and the aliases that serve their versions."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import Project
from adapterhub.api.permissions import actor_of, named_project, projects_with, require_scope, seen_in
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.core.references import parts_of
from adapterhub.core.tenancy import Scope
from registry.api.mlflow.base import OURS, MlflowViewSet, TagSerializer, not_in_mlflow
from registry.api.mlflow.messages import aliases_of, model_version, registered_model
from registry.api.mlflow.search import (
    Condition,
    SearchSerializer,
    conditions,
    name_condition,
    ordered,
    page,
    unknown,
)
from registry.models import Adapter, Alias, BaseModel, Cluster

REASON = "MLflow's set_registered_model_alias"
MOST_TAG_LETTERS = 50
BASE_MODEL = f"{OURS}base_model"
WAYS = {
    "rename": "An adapter keeps its slug, which its served names and its audit trail carry: create another one.",
    "remove": "Adapters are never deleted: archive their versions.",
    "remove_alias": "An alias is never deleted, as applications send it as `model`: move it to another version.",
}


class NameSerializer(serializers.Serializer[Any]):
    """The name of a registered model."""

    name = serializers.CharField(max_length=250)


class NewModelSerializer(NameSerializer):
    """The registered model to create; its base model is the tag `hub.base_model`."""

    tags = TagSerializer(many=True, required=False, default=list)
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=10_000)


class ModelChangeSerializer(NameSerializer):
    """The new description of a registered model."""

    description = serializers.CharField(allow_blank=True, max_length=10_000)


class ModelTagSerializer(NameSerializer, TagSerializer):
    """A tag of a registered model."""


class TagKeySerializer(NameSerializer):
    """The adapter's name and the key of one of its tags."""

    key = serializers.CharField(max_length=250)


class LatestSerializer(NameSerializer):
    """The registered model whose newest version is searched for, and its stages, of which only `None` exists."""

    stages = serializers.ListField(child=serializers.CharField(max_length=50), required=False, default=list)


class AliasOfSerializer(NameSerializer):
    """An alias of a registered model."""

    alias = serializers.SlugField(max_length=50)


class NewAliasOfSerializer(AliasOfSerializer):
    """The alias to set, and the version that it is to serve."""

    version = serializers.CharField(max_length=9)


class RegisteredModelViewSet(MlflowViewSet):
    """Registered models of MLflow, which are adapters."""

    scopes = {
        **dict.fromkeys(("create", "change", "set_tag", "drop_tag", "rename", "remove"), Scope.PUBLISH),
        **dict.fromkeys(("find", "search", "newest", "served"), Scope.READ),
        **dict.fromkeys(("set_alias", "remove_alias"), Scope.OPERATE),
    }

    def model(self, adapter: Adapter) -> Response:
        """Return the response that describes the adapter in MLflow's form."""
        aliases = aliases_of([adapter])[adapter.pk]
        return Response({"registered_model": registered_model(adapter, self.name_of(adapter), aliases)})

    def create(self, request: Request) -> Response:
        """Create an adapter; the tag `hub.base_model` names its base model. Conflict if the adapter exists already."""
        fields = self.read(NewModelSerializer)
        project, slug = self.place(fields["name"])
        if Adapter.objects.filter(project=project, slug=slug).exists():
            raise Conflict(f"The registered model {slug!r} exists already.", field="name", code="slug_taken")
        tags = {tag["key"]: tag["value"] for tag in fields["tags"]}
        base = tags.pop(BASE_MODEL, "")
        adapter = Adapter.create(
            project=project,
            slug=slug,
            base_model=base_model_of(base),
            description=fields["description"],
            tags=[as_text(key, value) for key, value in tags.items()],
            by=actor_of(request),
        )
        return self.model(adapter)

    def place(self, name: str) -> tuple[Project, str]:
        """Return the project and slug of a new adapter of this name, "project.slug" or "slug".

        Without a project it is the only one in which the caller may publish. Raises Invalid if there is none or
        several, and NotAllowed without scope publish.
        """
        owner, slug = parts_of(name)
        NewSlugSerializer(data={"name": slug}).is_valid(raise_exception=True)
        if owner:
            return named_project(self.request, owner, Scope.PUBLISH), slug
        projects = list(projects_with(self.request, Scope.PUBLISH).filter(archived_at=None)[:2])
        if len(projects) != 1:
            raise Invalid(
                f"Write the project before the name, as in project.{slug}: you may publish in "
                f"{'several' if projects else 'none with this token'}.",
                field="name",
                code="unknown_project",
            )
        require_scope(self.request, projects[0], Scope.PUBLISH)
        return projects[0], slug

    def find(self, request: Request) -> Response:
        """Return the adapter that `name` in the query means, in MLflow's form. Raises what `adapter` raises."""
        return self.model(self.adapter(self.query(NameSerializer)["name"]))

    def search(self, request: Request) -> Response:
        """List the adapters that the caller sees and that match the filter, in pages.

        They are in the order of their slugs unless `order_by` says otherwise.
        """
        search = self.query(SearchSerializer)
        rows = seen_in(self.queryset.all(), "project", request, Scope.READ)
        for condition in conditions(search["filter"]):
            rows = rows.filter(lookup_of(condition))
        fields = {"name": "slug", "creation_timestamp": "created_at", "last_updated_timestamp": "created_at"}
        adapters, further = page(ordered(rows, search["order_by"], fields, ["slug", "pk"]), search)
        aliases = aliases_of(adapters)
        models = [registered_model(adapter, self.name_of(adapter), aliases[adapter.pk]) for adapter in adapters]
        return Response({"registered_models": models, **further})

    def change(self, request: Request) -> Response:
        """Change the description of an adapter."""
        fields = self.read(ModelChangeSerializer)
        adapter = self.adapter(fields["name"])
        adapter.describe(by=actor_of(request), description=fields["description"])
        return self.model(adapter)

    def set_tag(self, request: Request) -> Response:
        """Set a tag of an adapter, in place of its tags with the same key. It is stored as the text `key=value`."""
        fields = self.read(ModelTagSerializer)
        adapter = self.adapter(fields["name"])
        text = as_text(fields["key"], fields["value"])
        others = [tag for tag in adapter.tags if tag.partition("=")[0] != fields["key"]]
        adapter.describe(by=actor_of(request), tags=[*others, text])
        return Response({})

    def drop_tag(self, request: Request) -> Response:
        """Remove a tag of an adapter; no effect if it has none of this key."""
        fields = self.read(TagKeySerializer)
        adapter = self.adapter(fields["name"])
        others = [tag for tag in adapter.tags if tag.partition("=")[0] != fields["key"]]
        if others != adapter.tags:
            adapter.describe(by=actor_of(request), tags=others)
        return Response({})

    def newest(self, request: Request) -> Response:
        """Return the adapter's newest version, as MLflow's deprecated get-latest-versions does for no stage.

        Any other stage than `None` is refused.
        """
        fields = self.fields(LatestSerializer)
        if stages := {*fields["stages"]} - {"None", ""}:
            raise not_in_mlflow(
                f"There are no stages such as {sorted(stages)[0]!r}: an alias names what is served.", field="stages"
            )
        adapter = self.adapter(fields["name"])
        aliases = aliases_of([adapter])[adapter.pk]
        versions = registered_model(adapter, self.name_of(adapter), aliases)["latest_versions"]
        return Response({"model_versions": versions})

    def served(self, request: Request) -> Response:
        """Return the version that the alias serves. 404 unless the alias serves a version of the named adapter."""
        fields = self.query(AliasOfSerializer)
        adapter = self.adapter(fields["name"])
        aliases = aliases_of([adapter])[adapter.pk]
        alias = next((each for each in aliases if each.name == fields["alias"]), None)
        if alias is None:
            raise Http404
        alias.version.adapter = adapter
        return Response({"model_version": model_version(alias.version, self.name_of(adapter), adapter, aliases)})

    def set_alias(self, request: Request) -> Response:
        """Move an alias to a version of the adapter, or create it on the one cluster that can serve the version.

        Nothing changes if it serves the version already. Conflict if it serves another adapter. The alias' own rules
        hold: a protected one is moved by an approved rollout alone.
        """
        fields = self.read(NewAliasOfSerializer)
        version = self.version(fields["name"], fields["version"])
        adapter, by = version.adapter, actor_of(request)
        alias = Alias.objects.filter(project=adapter.project, name=fields["alias"]).select_related("version").first()
        if alias is None:
            cluster = only_cluster(adapter)
            Alias.create(
                project=adapter.project, name=fields["alias"], cluster=cluster, version=version, policy={}, by=by
            )
        elif alias.version.adapter_id != adapter.pk:
            raise Conflict(
                f"{alias} serves {alias.version.adapter}: an alias is one name in its project, so choose another.",
                code="alias_of_another",
            )
        elif alias.version_id != version.pk:
            alias.move(version, expected=alias.version, reason=REASON, by=by)
        return Response({})

    def refuse(self, way: str) -> Response:
        """Raise Invalid with the text WAYS[way], which says what to do instead.

        Raises Http404 or NotAllowed in its place for an adapter that the caller does not see or may not change.
        """
        name = self.request.data.get("name") if isinstance(self.request.data, dict) else None
        self.adapter(str(name or ""))
        raise not_in_mlflow(WAYS[way])

    def rename(self, request: Request) -> Response:
        """Refuse to rename an adapter."""
        return self.refuse("rename")

    def remove(self, request: Request) -> Response:
        """Refuse to delete an adapter."""
        return self.refuse("remove")

    def remove_alias(self, request: Request) -> Response:
        """Refuse to delete an alias."""
        return self.refuse("remove_alias")


class NewSlugSerializer(serializers.Serializer[Any]):
    """The name of a new adapter without its project."""

    name = serializers.SlugField(max_length=50)


def base_model_of(slug: str) -> BaseModel:
    """Return the base model of this slug. Raises Invalid if the slug is empty or unknown."""
    if not slug:
        raise Invalid(
            f"An adapter has a base model: create the registered model with the tag {BASE_MODEL}, or the adapter in "
            "AdapterHub first.",
            field="tags",
            code="base_model_missing",
        )
    base = BaseModel.objects.filter(slug=slug).first()
    if base is None:
        field = "base_model"
        raise Invalid(f"{BASE_MODEL}: there is no base model {slug!r}.", field="tags", code=f"unknown_{field}")
    return base


def as_text(key: str, value: str) -> str:
    """Return a tag as the text that an adapter stores: `key=value`, or `key` for an empty value.

    Raises Invalid for a key that AdapterHub writes itself or that contains =, and for a text that is too long.
    """
    if key.startswith(OURS):
        raise Invalid(f"Tags that begin with {OURS} are written by AdapterHub: choose another key.", field="key")
    text = f"{key}={value}" if value else key
    if "=" in key or len(text) > MOST_TAG_LETTERS:
        raise Invalid(
            f"A tag has at most {MOST_TAG_LETTERS} letters with its value, and no = in its key: shorten it.",
            field="key",
        )
    return text


def only_cluster(adapter: Adapter) -> Cluster:
    """Return the only cluster of the adapter's base model that serves its project.

    Raises Invalid for none and for several.
    """
    clusters = Cluster.objects.serving(adapter.project).filter(base_model=adapter.base_model).distinct()[:3]
    if len(clusters) != 1:
        names = ", ".join(str(cluster) for cluster in clusters) or "none"
        raise Invalid(
            f"A new alias needs its cluster, and MLflow names none. Of {adapter.base_model} there is {names}: create "
            "the alias in AdapterHub, then move it from here.",
            field="alias",
            code="cluster_unclear",
        )
    return clusters[0]


def lookup_of(condition: Condition) -> Q:
    """Return the database lookup for one comparison of a search for adapters.

    Raises Invalid for a field, or a comparison of it, that cannot be searched for.
    """
    known = "name =, !=, LIKE, ILIKE, IN and tags.<key> = and !="
    if condition.field.lower() == "name":
        return name_condition(condition, "")
    head, _, key = condition.field.partition(".")
    if head.lower() in ("tag", "tags") and key and condition.verb in ("=", "!="):
        value = condition.values[0]
        same = (
            Q(base_model__slug=value) if key == BASE_MODEL else Q(tags__contains=[f"{key}={value}" if value else key])
        )
        return ~same if condition.verb == "!=" else same
    raise unknown(condition, known)
