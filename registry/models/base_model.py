"""Base models: the checkpoints that adapters are trained on and served with."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F, Q
from django.utils.timezone import now
from safetensors import safe_open

from adapterhub.artifacts import File, digest_of, manifest_of
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Invalid
from registry.adapter_files.base_identity import BaseFacts
from registry.adapter_files.update_sizes import weight_norms
from registry.domain_signals import base_model_registered
from serving_client.vllm_slots import BFLOAT16_BYTES, slot_bytes

# A check without a sign of life for this long was lost with its worker.
CHECK_LOST = timedelta(seconds=90)
# Prefix of the source of a model that was made of a version; clients cannot send it.
MADE_OF = "version:"
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")
# Fields that say how many experts a layer has: Qwen, Mixtral, DeepSeek.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
IDENTITY_FILES = ("*.safetensors", "config.json", "generation_config.json", "chat_template.*", *TOKENIZER_FILES)


class BaseModelStatus(models.TextChoices):
    """The states of a base model: its files are being checked, it is ready to use, or the check rejected it."""

    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"


class BaseModelQuerySet(models.QuerySet["BaseModel"]):
    """Base models, selected by their status."""

    def ready(self) -> BaseModelQuerySet:
        """Return the base models that are checked and not archived."""
        return self.filter(status=BaseModelStatus.READY, archived_at=None)

    def waiting(self) -> BaseModelQuerySet:
        """Return models that are `checking` although nobody checks them: the task's message or its worker was lost."""
        lost = Q(checked_at=None, created_at__lt=now() - CHECK_LOST) | Q(checked_at__lt=now() - CHECK_LOST)
        return self.filter(lost, status=BaseModelStatus.CHECKING)

    def checked_by(self, model: BaseModel) -> BaseModelQuerySet:
        """Return a query for the model's row if this attempt still checks it, else for nothing."""
        return self.filter(pk=model.pk, status=BaseModelStatus.CHECKING, check_attempt=model.check_attempt)


class BaseModel(models.Model):
    """A full checkpoint; its digest covers weights, tokenizer, chat template and configuration together."""

    slug = models.SlugField(unique=True)
    source = models.CharField(max_length=300, help_text="Folder below the models folder, or a hub id.")
    revision = models.CharField(max_length=100, blank=True)
    also_named = ArrayField(models.CharField(max_length=300), default=list, db_default=[], blank=True)
    status = models.CharField(max_length=20, choices=BaseModelStatus.choices, default=BaseModelStatus.CHECKING)
    message = models.TextField(blank=True)
    digest = models.CharField(max_length=64, blank=True, editable=False)
    tokenizer_digest = models.CharField(max_length=64, blank=True, default="", editable=False)
    template_digest = models.CharField(max_length=64, blank=True, default="", editable=False)
    config = models.JSONField(default=dict, editable=False)
    weight_norms = models.JSONField(
        default=dict, db_default={}, editable=False, help_text="module name -> Frobenius norm"
    )
    longest_token = models.PositiveIntegerField(
        default=0, db_default=0, editable=False, help_text="characters; 0: not known"
    )
    parameters = models.PositiveBigIntegerField(default=0, editable=False)
    size_bytes = models.PositiveBigIntegerField(default=0, editable=False)
    archived_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)
    checked_at = models.DateTimeField(null=True, editable=False, help_text="The last sign of life of its check.")
    check_attempt = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    variant_of = models.ForeignKey(
        "self", models.PROTECT, null=True, blank=True, editable=False, related_name="variants"
    )

    objects = BaseModelQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]
        constraints = [models.CheckConstraint(condition=~Q(variant_of=F("pk")), name="no_variant_of_itself")]

    def __str__(self) -> str:
        return self.slug

    @property
    def folder(self) -> Path:
        """The checkpoint's folder, always directly below the models folder: a client never supplies a path."""
        return settings.MODELS_DIR / self.slug

    @classmethod
    def register(cls, *, slug: str, source: str, revision: str = "", by: Actor) -> BaseModel:
        """Record the model and, after the commit, start its check, which fetches its files and computes the digest.

        `source` is the name of a folder in the models folder, a hub id (`owner/name`), or "version:" with a served
        name; `revision` is a branch, tag or commit of the hub, "" for its default. The slug of a rejected model can be
        used again, and its row is reused. Raises Invalid for a used slug, and for a model of a hub that no operator has
        listed.
        """
        require_listed(source, settings.MODELS_DIR / slug)
        origin = {"source": source, "revision": revision}
        again = {"message": "", "checked_at": None, "check_attempt": 0, "created_at": now(), "archived_at": None}
        with transaction.atomic():
            rejected = cls.objects.filter(slug=slug, status=BaseModelStatus.REJECTED)
            if not rejected.update(status=BaseModelStatus.CHECKING, also_named=[], **origin, **again):
                cls._insert(slug, **origin)
            model = cls.objects.get(slug=slug)
            AuditEvent.record(Tag.BASE_MODEL_REGISTERED, model, by=by, project=None, after={"source": source})
            send_on_commit(base_model_registered, base_model=model.pk)
        return model

    @classmethod
    def _insert(cls, slug: str, **origin: str) -> None:
        try:
            with transaction.atomic():
                cls.objects.create(slug=slug, **origin)
        except IntegrityError:
            raise Invalid(f"A base model {slug!r} is registered already.", field="slug", code="slug_taken") from None

    @classmethod
    def begin_check(cls, pk: int) -> BaseModel | None:
        """Claim the check of the model with this primary key and return the model.

        None if its check has ended, or another live worker has claimed it.
        """
        free = Q(checked_at=None) | Q(checked_at__lt=now() - CHECK_LOST)
        claimed = cls.objects.filter(free, pk=pk, status=BaseModelStatus.CHECKING).update(
            checked_at=now(), check_attempt=F("check_attempt") + 1
        )
        return cls.objects.get(pk=pk) if claimed else None

    def check_goes_on(self) -> bool:
        """Record a heartbeat of this attempt's check.

        Return False if another attempt has taken it over or it has ended.
        """
        return bool(BaseModel.objects.checked_by(self).update(checked_at=now()))

    @classmethod
    def register_version(cls, *, slug: str, version: Any, by: Actor) -> BaseModel:
        """Record a base model made from a version: its stored full checkpoint, or its base with the adapter merged.

        Its check starts after the commit, as for `register`. Raises Invalid for a version that is not ready, and for a
        used slug.
        """
        if version.status != "ready":
            raise Invalid(f"{version} is {version.status}, not ready.", field="version", code="version_not_ready")
        return cls.register(slug=slug, source=f"{MADE_OF}{version.served_name}", by=by)

    @property
    def made_of(self) -> str:
        """The served name of the version from which this model was made; "" for other models."""
        return self.source.removeprefix(MADE_OF) if self.source.startswith(MADE_OF) else ""

    def declare_names(self, names: list[str], *, reason: str, by: Actor) -> None:
        """Replace the further names under which adapters may refer to this model, and record that.

        Examples are the names of its quantised copies.
        """
        with transaction.atomic():
            model = BaseModel.objects.select_for_update().get(pk=self.pk)
            before = {"also_named": model.also_named}
            BaseModel.objects.filter(pk=self.pk).update(also_named=names)
            after = {"also_named": names}
            AuditEvent.record(
                Tag.BASE_MODEL_CHANGED, self, by=by, project=None, before=before, after=after, reason=reason
            )
        self.refresh_from_db()

    def inspect(self) -> None:
        """Read digests, configuration, norms, size and parameter count from the folder, and save the model as ready.

        A folder without weights, configuration or tokenizer.json makes it rejected, with the reason in `message`.
        """
        missing = [name for name in ("config.json", "tokenizer.json") if not (self.folder / name).is_file()]
        if missing or not list(self.folder.glob("*.safetensors")):
            self.reject(f"{self.folder.name}/ lacks {', '.join(missing) or 'safetensors weights'}.")
            return
        files = self.identity_files()
        self.digest = digest_of(files)
        self.tokenizer_digest = digest_of(matching(self.folder, TOKENIZER_FILES))
        self.template_digest = template_digest(self.folder)
        self.longest_token = longest_token(self.folder / "tokenizer.json")
        self.size_bytes = sum(file.size for file in files)
        self.config = json.loads((self.folder / "config.json").read_bytes())
        self.weight_norms = weight_norms(self.folder)
        self.parameters = sum(count_parameters(path) for path in self.folder.glob("*.safetensors"))
        self.status = BaseModelStatus.READY
        self.save()

    def measured_norms(self) -> dict[str, float]:
        """Return the Frobenius norm of each linear module's weight by module name.

        If they are not stored yet, they are computed from the files and stored.
        """
        if not self.weight_norms:
            self.weight_norms = weight_norms(self.folder)
            BaseModel.objects.filter(pk=self.pk).update(weight_norms=self.weight_norms)
        norms: dict[str, float] = self.weight_norms
        return norms

    def identity_files(self) -> list[File]:
        """Hash and return the files that the digest covers: weights, configuration, tokenizer and chat template."""
        return matching(self.folder, IDENTITY_FILES)

    def reject(self, message: str) -> None:
        """Mark the base model rejected with a message, and record it."""
        with transaction.atomic():
            self.status, self.message = BaseModelStatus.REJECTED, message
            self.save()
            AuditEvent.record(
                Tag.BASE_MODEL_REJECTED, self, by=Actor("system:intake", "system"), project=None, reason=message
            )

    @property
    def measurement(self) -> dict[str, Any] | None:
        """The newest measurement of what this variant costs: losses, their difference, tokens, rows and time.

        None for one that was never measured with its present files and those of its base. The dataset is left out:
        other projects see this.
        """
        base = self.variant_of
        for row in self.variant_measurements.all():
            measured = row.metrics.get("variant", {})
            if base and row.base_digest == base.digest and measured.get("digest") == self.digest:
                names = ("loss", "loss_base", "difference", "with_version", "tokens", "rows")
                return {**{name: measured[name] for name in names}, "measured_at": row.created_at.isoformat()}
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that an uploaded configuration may use: slug, last part of the source, and declared ones."""
        return (self.slug, self.source.rsplit("/", 1)[-1], *self.also_named)

    def facts(self, project: Any, *, named: bool) -> BaseFacts:
        """Return the facts that the files of a project's adapter are checked against.

        If `named`, they include the accepted names of the base model, with those of its declared variants and of other
        registered models of the same files; without it any name is accepted.
        """
        same = Q(digest=self.digest) & ~Q(digest="") | Q(variant_of=self)
        twins = BaseModel.objects.filter(same).exclude(pk=self.pk)
        names = [*self.names, *(name for twin in twins for name in twin.names)] if named else []
        return BaseFacts(
            self.linear_shapes(),
            self.layers,
            tuple(names),
            self.revision,
            int(self.config.get("vocab_size", 0)),
            int(self.config.get("hidden_size", 0)),
            self.highest_rank(project),
        )

    def highest_rank(self, project: Any) -> int:
        """Return the highest rank that a cluster of this base model serves for the project.

        0 if there is no cluster.
        """
        serving = self.clusters.model.objects.serving(project)
        of_base = serving.filter(Q(base_model=self) | Q(base_model__variant_of=self))
        return max(of_base.values_list("max_lora_rank", flat=True), default=0)

    def serves_adapters_of(self, digest: str) -> bool:
        """Return True if the digest is this model's, or that of the model of which it is a declared variant.

        In a transaction the relation stays as it is until the end of that.
        """
        if self.digest == digest or self.variant_of_id is None:
            return self.digest == digest
        rows = BaseModel.objects.filter(pk=self.pk)
        if connection.in_atomic_block:
            rows = rows.select_for_update(no_key=True)
        base = rows.values_list("variant_of", flat=True).first()
        return base is not None and BaseModel.objects.filter(pk=base, digest=digest).exists()

    @property
    def layers(self) -> int:
        """Return the number of layers; 0 if the configuration does not say."""
        return int(self.config.get("num_hidden_layers", 0))

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shapes (out, in) of the linear modules of a Llama-like architecture, by kind (`q_proj`)."""
        return linear_shapes(self.config)

    def has_shapes_of(self, other: BaseModel) -> bool:
        """Return True if both have linear modules of the same shapes; False if a configuration leaves out a size."""
        try:
            return self.linear_shapes() == other.linear_shapes()
        except KeyError:
            return False

    def slot_bytes(self, rank: int, number_bytes: int = BFLOAT16_BYTES) -> int:
        """Return the bytes that an engine reserves for one adapter slot of this rank.

        `number_bytes` is 2 for bfloat16.
        """
        return self.layers * slot_bytes(self.linear_shapes().values(), rank, number_bytes)


def require_listed(source: str, folder: Path) -> None:
    """Check that the files of a hub's model may be fetched. Raises Invalid if not.

    An operator must have listed its owner or repository, or have put the files into `folder`; a source without a slash
    passes. The reason: all projects use a base model, and its chat template runs in the web process.
    """
    owner, is_of_hub, _ = source.partition("/")
    if is_of_hub and not folder.is_dir() and not {owner, source} & set(settings.BASE_MODEL_SOURCES):
        raise Invalid(
            f"{source} is not fetched: ask an operator to add it, or {owner}, to ADAPTERHUB_BASE_MODEL_SOURCES.",
            field="source",
            code="source_not_allowed",
        )


def longest_token(path: Path) -> int:
    """Return the number of characters of the longest token in a tokenizer.json; 0 if it has no known vocabulary."""
    raw = json.loads(path.read_bytes())
    vocabulary = raw.get("model", {}).get("vocab", ())
    # Unigram lists pairs of token and score.
    tokens = [token[0] if isinstance(token, list) else token for token in vocabulary]
    tokens += [token["content"] for token in raw.get("added_tokens", ())] if tokens else []
    return max(map(len, tokens), default=0)


def matching(folder: Path, patterns: tuple[str, ...]) -> list[File]:
    """Return the path, size and sha256 of each file in the folder that matches a pattern."""
    return manifest_of(folder, {path for pattern in patterns for path in folder.glob(pattern)})


def template_digest(folder: Path) -> str:
    """Return the sha256, in hexadecimal, of the chat template; "" without a template.

    The template is chat_template.jinja, or else an entry of tokenizer_config.json.
    """
    own, shared = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        template: Any = own.read_text()
    else:
        template = json.loads(shared.read_bytes()).get("chat_template") if shared.is_file() else None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if template else ""


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of a Llama-like model's linear modules by kind (`q_proj`); `config` is its config.json.

    For a mixture of experts only the attention's: no engine here adapts experts, and dense layers beside them vary.
    Raises KeyError if the configuration lacks a size.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, key = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    attention = {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
    }
    if any(config.get(name) for name in EXPERTS):
        return attention
    return {
        **attention,
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def count_parameters(path: Path) -> int:
    """Count the parameters in a safetensors file, from its header alone."""
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
