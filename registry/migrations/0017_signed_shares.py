"""Default aliases of adapters, and the triggers that bind shares and names of protected aliases to signatures."""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Count

PROTECT = """
CREATE FUNCTION registry_share(weight float8, step jsonb, targeting jsonb) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN EXISTS (
        SELECT 1 FROM jsonb_each_text(COALESCE(targeting->'pinned', '{}')) AS pin WHERE pin.value = 'candidate'
    ) THEN 100 ELSE GREATEST(weight::numeric, COALESCE((step->>'shadow')::numeric, 0)) END
$$;

CREATE FUNCTION registry_rollout_is_signed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    rules jsonb;
    permitted numeric;
BEGIN
    SELECT policy INTO rules FROM registry_alias WHERE id = NEW.alias_id;
    IF NEW.status NOT IN ('running', 'awaiting_approval') OR COALESCE((rules->>'quorum')::int, 0) = 0 THEN
        RETURN NEW;
    END IF;
    SELECT max(registry_share((planned.step->>'weight')::float8, planned.step, NEW.targeting)) INTO permitted
        FROM registry_approval AS signed, jsonb_array_elements(NEW.steps) AS planned(step)
        WHERE signed.rollout_id = NEW.id AND signed.alias_id = NEW.alias_id AND signed.kind = 'promotion'
        AND signed.candidate_id = NEW.candidate_id AND signed.status IN ('approved', 'glass_broken', 'reviewed')
        AND signed.evidence->'plan' = jsonb_build_object(
            'steps', NEW.steps, 'guardrails', NEW.guardrails, 'targeting', NEW.targeting
        );
    IF permitted IS NULL THEN
        SELECT CASE WHEN latest.status = 'rejected' THEN 0 ELSE (rules->>'canary')::numeric END INTO permitted
            FROM (SELECT 1) AS one LEFT JOIN (
                SELECT status FROM registry_approval WHERE alias_id = NEW.alias_id AND kind = 'promotion'
                AND candidate_id = NEW.candidate_id
                AND status IN ('approved', 'used', 'glass_broken', 'reviewed', 'rejected')
                ORDER BY decided_at DESC LIMIT 1
            ) AS latest ON true;
    END IF;
    IF registry_share(NEW.weight, NEW.steps->(NEW.step::int), NEW.targeting) > COALESCE(permitted, 0) THEN
        RAISE EXCEPTION 'a rollout of a protected alias gets the share that was signed' USING
            ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION registry_alias_keeps_its_name() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    served_adapter bigint;
BEGIN
    IF NEW.default_of_id IS NOT NULL THEN
        SELECT adapter_id INTO served_adapter FROM registry_adapterversion WHERE id = NEW.version_id;
        IF served_adapter <> NEW.default_of_id THEN
            RAISE EXCEPTION 'alias % is the default of another adapter than it serves', NEW.name
                USING ERRCODE = 'restrict_violation';
        END IF;
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NEW.policy ? 'canary' THEN
            RAISE EXCEPTION 'the canary of alias % is not signed', NEW.name USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF COALESCE((OLD.policy->>'quorum')::int, 0) = 0 THEN
        IF NEW.policy ? 'canary' THEN
            RAISE EXCEPTION 'the canary of alias % is not signed', NEW.name USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF (NEW.name, NEW.project_id, NEW.cluster_id) <> (OLD.name, OLD.project_id, OLD.cluster_id)
        OR (OLD.default_of_id IS NOT NULL AND NEW.default_of_id IS DISTINCT FROM OLD.default_of_id) THEN
        RAISE EXCEPTION 'alias % is protected: it keeps its name, project, cluster and adapter', OLD.name
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER signed BEFORE INSERT OR UPDATE ON registry_rollout
    FOR EACH ROW EXECUTE FUNCTION registry_rollout_is_signed();
CREATE TRIGGER named BEFORE INSERT OR UPDATE ON registry_alias
    FOR EACH ROW EXECUTE FUNCTION registry_alias_keeps_its_name();
CREATE TRIGGER kept_rows BEFORE DELETE ON registry_alias FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_alias FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE registry_rollout ENABLE ALWAYS TRIGGER signed;
ALTER TABLE registry_alias ENABLE ALWAYS TRIGGER named;
ALTER TABLE registry_alias ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_alias ENABLE ALWAYS TRIGGER kept_table;
"""
RELEASE = """
DROP TRIGGER kept_table ON registry_alias;
DROP TRIGGER kept_rows ON registry_alias;
DROP TRIGGER named ON registry_alias;
DROP TRIGGER signed ON registry_rollout;
DROP FUNCTION registry_alias_keeps_its_name();
DROP FUNCTION registry_rollout_is_signed();
DROP FUNCTION registry_share(float8, jsonb, jsonb);
"""


def name_only_aliases(apps: Any, schema_editor: Any) -> None:
    """Make the only alias of an adapter its default; where several exist, a person has to choose."""
    aliases = apps.get_model("registry", "Alias").objects
    counted = aliases.values_list("version__adapter").annotate(count=Count("pk")).order_by()
    for adapter, _ in counted.filter(count=1):
        aliases.filter(version__adapter=adapter).update(default_of=adapter)


class Migration(migrations.Migration):
    # The triggers are made after the rows were changed, which Postgres does not allow in one transaction.
    atomic = False
    dependencies = [
        ("registry", "0016_rollouts_were_opened"),
        ("audit", "0006_append"),
    ]

    operations = [
        migrations.AddField(
            model_name="alias",
            name="default_of",
            field=models.OneToOneField(
                blank=True,
                editable=False,
                help_text="The adapter whose bare name stands for this alias.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="default_alias",
                to="registry.adapter",
            ),
        ),
        migrations.RunPython(name_only_aliases, migrations.RunPython.noop),
        migrations.RunSQL(PROTECT, RELEASE),
    ]
