"""Pages of base models: the list, one base model with its further names, and the form for a new one."""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.text import slugify
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, errors_on, followed, form_page
from adapterhub.api.permissions import actor_of, projects_of, require_admin_somewhere
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from registry.base_models import variants
from registry.models import BaseModel, BaseModelStatus
from registry.pages.forms import cleaned
from registry.pages.new_forms import HUB_ID, BaseModelForm, NamesForm, VariantForm
from registry.serving import replica_calls


@login_required
def base_models(request: HttpRequest) -> HttpResponse:
    """List the base models, which all projects share."""
    listing = Listing(
        request,
        BaseModel.objects.all(),
        search=("slug", "source"),
        sorts={"name": "slug", "parameters": "parameters", "added": "created_at"},
        choices={"status": BaseModelStatus.choices},
    )
    context = {**listing.context(), "may_add": may_change(request)}
    return render(request, "registry/base_models.html", context)


def may_change(request: HttpRequest) -> bool:
    """Return True if the person is an admin of a project or of the installation."""
    return bool(request.user.is_superuser) or allowed(request, Scope.ADMIN).exists()


@login_required
def base_model(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a base model and the progress of its check; an admin's POST replaces its further names.

    Raises Http404 for an unknown slug, and NotAllowed for the POST of a person who is not an admin of a project or the
    installation.
    """
    viewed = get_object_or_404(BaseModel.objects.select_related("variant_of"), slug=slug)
    if request.method == "POST":
        require_admin_somewhere(request)
    form = NamesForm(request.POST or None, initial={"also_named": viewed.also_named})
    if form.is_valid():
        with errors_on(form):
            fields = form.cleaned_data
            viewed.declare_names(fields["also_named"], reason=fields["reason"], by=actor_of(request))
            messages.success(request, f"The names of {viewed} are declared.")
            return redirect("base-model", slug=slug)
    related = {"variant_of": viewed.variant_of and viewed.variant_of.slug}
    # Two forms of one page must not give two fields one id.
    declaring = VariantForm(model=viewed, initial=related, auto_id="variant_%s")
    context = {
        "model": viewed,
        "form": form,
        "declaring": declaring,
        "may_change": may_change(request),
        "clusters": serving(request, viewed),
        "variants": viewed.variants.prefetch_related("variant_measurements"),
    }
    response = followed(
        request, "registry/base_model.html", "registry/_base_model_state.html", context, str(viewed.status)
    )
    response.status_code = 422 if form.errors else response.status_code
    return response


@login_required
@require_POST
def declare_variant(request: HttpRequest, slug: str) -> HttpResponse:
    """Declare this base model a variant of the one in the form, or revoke that if the form names none.

    Then redirect to its page. Raises Http404 for an unknown slug, NotAllowed for people who are not admins of a project
    or the installation, and as `variants.declare` and `variants.revoke` do.
    """
    require_admin_somewhere(request)
    viewed = get_object_or_404(BaseModel, slug=slug)
    fields = cleaned(VariantForm(request.POST, model=viewed))
    what: dict[str, Any] = {"reason": fields["reason"], "by": actor_of(request)}
    if base := fields["variant_of"]:
        variants.declare(viewed, base, **what)
        messages.success(request, f"{viewed} is declared a variant of {base}: its clusters serve its adapters.")
    else:
        variants.revoke(viewed, seen=projects_of(request), **what)
        messages.success(request, f"{viewed} is no variant of another base model.")
    return redirect("base-model", slug=slug)


def serving(request: HttpRequest, model: BaseModel) -> Any:
    """Return the clusters of the base model that belong to projects which the person may read."""
    return model.clusters.filter(project__in=allowed(request, Scope.READ)).select_related("project")


@login_required
def new_base_model(request: HttpRequest) -> HttpResponse:
    """Show the form for a new base model, or register it.

    It is a folder of the models folder, a model of the hub, or the model that an engine serves. Raises NotAllowed for
    people who are not admins of a project or the installation.
    """
    require_admin_somewhere(request)
    form = BaseModelForm(request.POST or None)
    if form.is_valid():
        with errors_on(form):
            model = register(request, form.cleaned_data)
            messages.success(request, f"{model} is being checked: its files are read and hashed.")
            return redirect("base-model", slug=model.slug)
    return form_page(
        request,
        form,
        title="New base model",
        lead="Adapters are trained on it, and engines serve it. All projects of the installation share it.",
        action="Add the base model",
        back=reverse("base-models"),
        place="Base models",
    )


def register(request: HttpRequest, fields: dict[str, Any]) -> BaseModel:
    """Register and return the base model that the form's fields name: an engine's, one of the hub, or a folder.

    Raises Invalid for a used slug, for a source of the hub that no operator has listed, and as `served_by` does.
    """
    by = actor_of(request)
    if fields["engine"]:
        name, source = served_by(fields["engine"])
        return BaseModel.register(slug=fields["slug"] or slug_for(name), source=source, by=by)
    if fields["hub"]:
        slug = fields["slug"] or slug_for(fields["hub"])
        return BaseModel.register(slug=slug, source=fields["hub"], revision=fields["revision"], by=by)
    return BaseModel.register(slug=fields["folder"], source=fields["folder"], by=by)


def slug_for(name: str) -> str:
    """Return a slug made of the last part of a model's name. Raises Invalid if no slug can be made of it."""
    last = name.rstrip("/").rpartition("/")[2]
    slug = last if re.fullmatch(r"[\w-]{1,50}", last) else slugify(last.replace(".", "-"))[:50]
    if not slug:
        raise Invalid("Give it a name: none can be made of the model's.", field="slug")
    return slug


def served_by(url: str) -> tuple[str, str]:
    """Ask the engine at `url` for its base models; return (name, source) of the first that is known here.

    The source is a folder of the models folder or a hub id. Raises Invalid for an address that is not allowed or does
    not answer, and if none of the models is known.
    """
    bases = replica_calls.base_models(url, settings.ENGINE_HOSTS)
    for name, root in bases.items():
        if (settings.MODELS_DIR / slug_for(name) / "config.json").is_file():
            return name, slug_for(name)
        for source in (root, name):
            if HUB_ID.fullmatch(source):
                return name, source
    named = ", ".join(list(bases)[:3]) or "no model"
    raise Invalid(
        f"The engine serves {named}, which is neither in {settings.MODELS_DIR.name}/ nor named by a hub id: "
        "put its files into that folder, or name the hub's model.",
        field="engine",
        code="unknown_source",
    )
