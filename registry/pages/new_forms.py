"""Forms that create and change base models, adapters, clusters, replicas and aliases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from django import forms
from django.conf import settings
from django.db.models import QuerySet

from adapterhub.accounts.models import Project
from adapterhub.api.pages import CHOOSE, offer, preselect
from adapterhub.core.forms import Form
from registry.models import AdapterVersion, BaseModel, Cluster, Replica, without_bodies
from registry.models.alias_policy import MAX_CACHE_BYTES, MAX_QUORUM, MAX_TTL_S
from registry.pages.forms import OFFERED, DiscoveryField, ReasonForm

HUB_ID = re.compile(r"\A[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
ADDRESS = re.compile(r"\Ahttps?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?/?\Z")
SCORE = re.compile(r"(\S{1,100})\s+(\S{1,100})\s*(>=|<=)\s*(-?\d{1,9}(?:\.\d{1,9})?)")
BOUNDS = {"at_least": ">=", "at_most": "<="}
HOST_AND_PORT = re.compile(r"[\w.-]+:\d{1,5}")


class LinesField(forms.CharField):
    """A form field of texts, one on each line or separated by commas.

    It takes at most `most` texts, each of at most `longest` characters.
    """

    def __init__(self, *, rows: int = 3, longest: int = 300, most: int = 100, **kwargs: Any) -> None:
        super().__init__(widget=forms.Textarea(attrs={"rows": rows}), required=False, **kwargs)
        self.longest, self.most = longest, most

    def validate(self, value: Any) -> None:
        """Check the number and the lengths of the texts. Raises ValidationError."""
        if len(value) > self.most:
            raise forms.ValidationError(f"Name {self.most} at most.")
        if too_long := [text for text in value if len(text) > self.longest]:
            raise forms.ValidationError(f"{too_long[0][:40]!r}… is too long: {self.longest} characters at most.")

    def prepare_value(self, value: Any) -> Any:
        """Return a list as lines of text; any other value unchanged."""
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:  # type: ignore[override]  # a field gives what it likes
        """Return the texts, each once, without surrounding spaces."""
        texts = (text.strip() for text in re.split(r"[\n,]", super().to_python(value) or ""))
        return list(dict.fromkeys(text for text in texts if text))


class BaseModelForm(Form):
    """A form for a new base model: a folder of this installation, a model of the hub, or an engine's model."""

    folder = forms.ChoiceField(required=False, label="A model that lies here")
    hub = forms.RegexField(
        HUB_ID,
        max_length=200,
        required=False,
        label="Or a model of the hub",
        help_text="Its id, such as Qwen/Qwen3-0.6B. Its owner stands in ADAPTERHUB_BASE_MODEL_SOURCES.",
    )
    revision = forms.RegexField(
        r"^[\w.-]*$", max_length=100, required=False, help_text="Of a hub's model: a branch, tag or commit."
    )
    engine = forms.RegexField(
        ADDRESS,
        max_length=300,
        required=False,
        label="Or the model of a running engine",
        help_text="Its address, such as http://10.0.0.7:8000: the engine says which model it serves.",
    )
    slug = forms.SlugField(
        max_length=50,
        required=False,
        label="Name",
        help_text="Adapters and clusters name it so. Empty: after the model. A folder keeps its own name.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        folders = unregistered_folders()
        choices = [("", "none"), *((name, name) for name in folders)]
        cast(forms.ChoiceField, self.fields["folder"]).choices = choices
        if folders and "folder" not in self.initial:
            self.initial["folder"] = folders[0]
        self.fields["folder"].help_text = f"A folder in {settings.MODELS_DIR.name}/ of the data folder."

    def clean(self) -> dict[str, Any]:
        """Check that exactly one origin is named, and return the fields. Adds an error to the form otherwise.

        A folder is ignored if a hub's model or an engine is typed in, too.
        """
        fields = self.cleaned_data
        typed = [name for name in ("hub", "engine") if fields.get(name)]
        if len(typed) > 1:
            self.add_error("engine", "Name a model of the hub or an engine, not both.")
        elif not typed and not fields.get("folder") and not self.errors:
            self.add_error("hub", "Choose a folder, or name a model of the hub or an engine.")
        return fields


def unregistered_folders() -> list[str]:
    """Return the names of folders in the models folder that contain a model and are not registered as a base model."""
    known = set(BaseModel.objects.values_list("slug", flat=True))
    folders = settings.MODELS_DIR.iterdir() if settings.MODELS_DIR.is_dir() else ()
    names = sorted(folder.name for folder in folders if (folder / "config.json").is_file())
    return [name for name in names if name not in known and re.fullmatch(r"[\w-]{1,50}", name)]


class NamesForm(ReasonForm):
    """A form for the further names of a base model."""

    also_named = LinesField(
        label="Also named",
        help_text="One on each line: copies of the same weights, quantised ones included. Adapters may name them.",
    )
    field_order = ("also_named", "reason")


class VariantForm(ReasonForm):
    """A form that declares a base model a variant of another one, or with an empty choice revokes that."""

    variant_of = forms.ModelChoiceField(
        BaseModel.objects.none(),
        to_field_name="slug",
        required=False,
        label="Variant of",
        empty_label="no other model",
        help_text="A copy with other numbers, such as fewer bits, whose clusters then serve that model's adapters.",
    )
    field_order = ("variant_of", "reason")

    def __init__(self, *args: Any, model: BaseModel, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        others = BaseModel.objects.ready().filter(variant_of=None).exclude(pk=model.pk)
        cast("forms.ModelChoiceField[BaseModel]", self.fields["variant_of"]).queryset = others


class ProjectRowForm(Form):
    """A form for a new object in one of the person's projects; the parent of other forms."""

    project = forms.ModelChoiceField(Project.objects.none(), to_field_name="slug")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, project=projects)
        preselect(self, "project")


class AdapterForm(ProjectRowForm):
    """A form for a new adapter."""

    slug = forms.SlugField(max_length=50, label="Name", help_text="Such as contracts-de. It never changes.")
    base_model = forms.ModelChoiceField(BaseModel.objects.none(), to_field_name="slug")
    description = forms.CharField(max_length=10_000, required=False, widget=forms.Textarea(attrs={"rows": 3}))
    tags = LinesField(rows=2, longest=50, help_text="One on each line.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, base_model=BaseModel.objects.filter(archived_at=None).exclude(status="rejected"))
        preselect(self, "base_model")


class DescriptionForm(Form):
    """A form for the description and the tags of an adapter."""

    description = forms.CharField(max_length=10_000, required=False, widget=forms.Textarea(attrs={"rows": 3}))
    tags = LinesField(rows=2, longest=50, help_text="One on each line.")


class ReplicasField(LinesField):
    """A form field of engines' addresses, one on each line."""

    def validate(self, value: Any) -> None:
        """Check number, lengths and form of the addresses. Raises ValidationError."""
        super().validate(value)
        if bad := [address for address in value if not ADDRESS.fullmatch(address)]:
            raise forms.ValidationError(f"{bad[0]!r} is no address: write http://host:port.")


class ClusterForm(ProjectRowForm):
    """A form for a new cluster with its first replicas."""

    slug = forms.SlugField(
        max_length=50, label="Name", initial="local", help_text="Its short name in addresses and commands."
    )
    base_model = forms.ModelChoiceField(BaseModel.objects.none(), to_field_name="slug")
    engine = forms.ChoiceField(choices=Cluster.Engine.choices, help_text="The program that its replicas run.")
    max_lora_rank = forms.TypedChoiceField(
        choices=Cluster._meta.get_field("max_lora_rank").choices or (),
        coerce=int,
        initial=64,
        label="Highest rank",
        help_text="As its engines were started: --max-lora-rank of vLLM.",
    )
    max_loras = forms.IntegerField(
        min_value=1, max_value=10_000, initial=8, label="Adapters a replica", help_text="--max-loras of vLLM."
    )
    routing = forms.ChoiceField(
        choices=Cluster.Routing.choices,
        initial=Cluster.Routing.LEAST_LOADED,
        required=False,
        label="Routers choose the replica by",
        help_text="Prefix affinity sends prompts with the same beginning to one replica, whose cache then has it.",
    )
    discovery = DiscoveryField()
    engine_key = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        label="API key of the engines",
        help_text="--api-key of vLLM; kept encrypted, never shown. Empty: they ask for none.",
    )
    replicas = ReplicasField(
        label="Replicas",
        help_text="Addresses of running engines that serve the base model, one on each line. More can be added later.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, base_model=BaseModel.objects.ready())
        preselect(self, "base_model")
        self.fields["replicas"].initial = free_engines()

    def clean_routing(self) -> str:
        """Return the chosen routing, or the default."""
        return self.cleaned_data["routing"] or Cluster.Routing.LEAST_LOADED


def free_engines() -> list[str]:
    """Return the URLs of the engines that the operator listed and that are not replicas yet, in alphabetical order.

    Of several hosts with the same port only the first that is listed counts.
    """
    taken = set(Replica.objects.values_list("url", flat=True))
    named: Iterable[str] = (entry for entry in settings.ENGINE_HOSTS if HOST_AND_PORT.fullmatch(entry))
    by_port = {entry.rpartition(":")[2]: f"http://{entry}" for entry in reversed(list(named))}
    return sorted(address for address in by_port.values() if address not in taken)


class ReplicaForm(Form):
    """A form for a further replica of a cluster."""

    url = forms.RegexField(ADDRESS, max_length=300, label="Address", help_text="Such as http://10.0.0.7:8000.")


class ScoresField(forms.CharField):
    """A form field of least or greatest scores in tasks of lm-eval, one on each line: `TASK METRIC >= NUMBER`.

    `<=` instead of `>=` sets a greatest score.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(widget=forms.Textarea(attrs={"rows": 2}), required=False, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        """Return the scores of a stored policy as lines of text; any other value unchanged."""
        if not isinstance(value, list):
            return value
        return "\n".join(
            f"{one['task']} {one['metric']} {sign} {one[bound]:g}"
            for one in value
            for bound, sign in BOUNDS.items()
            if bound in one
        )

    def to_python(self, value: Any) -> list[dict[str, Any]]:  # type: ignore[override]  # a field gives what it likes
        """Return the scores in the form of a policy's `evaluations`.

        Raises ValidationError for a line of another form.
        """
        lines = [line.strip() for line in (super().to_python(value) or "").splitlines() if line.strip()]
        read = [SCORE.fullmatch(line) for line in lines]
        if bad := [line for line, match in zip(lines, read, strict=True) if match is None]:
            raise forms.ValidationError(f"{bad[0][:60]!r} is not TASK METRIC >= NUMBER, such as our_law acc >= 0.6.")
        bounds = {sign: bound for bound, sign in BOUNDS.items()}
        matches = [match for match in read if match]
        return [{"task": one[1], "metric": one[2], bounds[one[3]]: float(one[4])} for one in matches]


class PolicyFields(Form):
    """The fields of an alias' policy."""

    quorum = forms.IntegerField(
        min_value=0,
        max_value=MAX_QUORUM,
        initial=0,
        label="Signatures",
        help_text="People who must approve before a candidate gets traffic. 0: unprotected.",
    )
    canary = forms.FloatField(
        min_value=0,
        max_value=100,
        required=False,
        label="Share without a signature, in percent",
        help_text="Of a protected alias. Empty: none. It counts once another person has approved the policy.",
    )
    cache_s = forms.IntegerField(
        min_value=1,
        max_value=MAX_TTL_S,
        required=False,
        label="Keep answers for, in seconds",
        help_text="The same request at temperature 0 is answered from the cache. Empty: no cache.",
    )
    cache_mb = forms.IntegerField(
        min_value=1,
        max_value=MAX_CACHE_BYTES >> 20,
        required=False,
        initial=64,
        label="Room for answers, in MiB",
        help_text="The oldest answers make room for new ones.",
    )

    evaluations = ScoresField(
        label="Scores that a promotion needs",
        help_text="In tasks of lm-eval, one on each line: our_law acc >= 0.6, or <= for a greatest score.",
    )

    def policy(self, present: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the policy that the fields describe; `present` is the alias' present one, None for a new alias.

        Keys of `present` for which there is no field stay, as do its `evaluations` if that field was not submitted.
        """
        fields = self.cleaned_data
        named = {"quorum", "canary", "cache"} | ({"evaluations"} & self.data.keys())
        policy = {name: value for name, value in (present or {}).items() if name not in named}
        policy |= {"quorum": fields["quorum"]} if fields["quorum"] else {}
        if fields["canary"] is not None:
            policy["canary"] = fields["canary"]
        policy |= {"evaluations": fields["evaluations"]} if fields["evaluations"] else {}
        stands = policy_fields(present or {})
        if present and "cache" in present and all(fields[name] == stands[name] for name in ("cache_s", "cache_mb")):
            # Whoever set bytes that are no whole MiB keeps them.
            policy["cache"] = present["cache"]
        elif fields["cache_s"]:
            policy["cache"] = {"ttl_s": fields["cache_s"], "max_bytes": (fields["cache_mb"] or 64) << 20}
        return policy


def policy_fields(policy: dict[str, Any]) -> dict[str, Any]:
    """Return the initial values of `PolicyFields` for a stored policy."""
    cache = policy.get("cache") or {}
    return {
        "quorum": policy.get("quorum", 0),
        "canary": policy.get("canary"),
        "evaluations": policy.get("evaluations", []),
        "cache_s": cache.get("ttl_s"),
        "cache_mb": max(1, cache.get("max_bytes", 64 << 20) >> 20),
    }


class PolicyForm(PolicyFields, ReasonForm):
    """A form for the new policy of an alias, with a reason: signatures, canary share, scores and cache.

    `policy` returns the policy; the reason is in `cleaned_data`.
    """

    field_order = ("quorum", "canary", "evaluations", "cache_s", "cache_mb", "reason")


class AliasForm(PolicyFields):
    """A form for a new alias that serves one of the newest versions of the person's projects, or a named one.

    The named version is the one in the query string.
    """

    name = forms.SlugField(max_length=50, help_text="What applications send as model.")
    version = forms.ModelChoiceField(AdapterVersion.objects.none(), help_text="What it serves at first.")
    cluster = forms.ModelChoiceField(Cluster.objects.none())
    default = forms.BooleanField(
        required=False, label="The adapter's bare name stands for it", help_text="For requests that name the adapter."
    )
    field_order = ("name", "version", "cluster", "default")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ready = AdapterVersion.objects.ready().filter(adapter__project__in=projects)
        newest = without_bodies(ready.select_related("adapter__project").order_by("-pk"), "")
        clusters = Cluster.objects.none()
        for project in projects:
            clusters |= Cluster.objects.offered_to(project)
        offer(self, version=newest, cluster=clusters.select_related("project").distinct())
        preselect(self, "version", "cluster")
        named = str(self.initial.get("version") or "")
        wanted = newest.filter(pk=named) if named.isdecimal() and len(named) < 19 else newest.none()
        rows = {each.pk: str(each) for each in [*wanted, *newest[:OFFERED]]}
        cast(forms.Select, self.fields["version"].widget).choices = [("", CHOOSE), *rows.items()]
