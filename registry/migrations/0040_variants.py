"""Declared variants of base models: not of itself, no chains, and only between models that are ready."""

import django.db.models.deletion
from django.db import migrations, models

NO_CHAINS = """
CREATE FUNCTION registry_variant_is_no_chain() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.variant_of_id IS NULL THEN
        RETURN NEW;
    END IF;
    -- Two declarations at a time would not see each other.
    PERFORM pg_advisory_xact_lock(hashtext('adapterhub variants'));
    IF EXISTS (SELECT FROM registry_basemodel WHERE id = NEW.variant_of_id AND variant_of_id IS NOT NULL)
        OR EXISTS (SELECT FROM registry_basemodel WHERE variant_of_id = NEW.id) THEN
        RAISE EXCEPTION 'base model % would be part of a chain of variants', NEW.slug
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status <> 'ready'
        OR EXISTS (SELECT FROM registry_basemodel WHERE id = NEW.variant_of_id AND status <> 'ready') THEN
        RAISE EXCEPTION 'base model % or its base is not ready', NEW.slug USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER no_chains BEFORE INSERT OR UPDATE OF variant_of_id ON registry_basemodel
    FOR EACH ROW EXECUTE FUNCTION registry_variant_is_no_chain();
ALTER TABLE registry_basemodel ENABLE ALWAYS TRIGGER no_chains;
"""
CHAINS = """
DROP TRIGGER no_chains ON registry_basemodel;
DROP FUNCTION registry_variant_is_no_chain();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0039_defaults_for_the_release_before")]

    operations = [
        migrations.AddField(
            model_name="basemodel",
            name="variant_of",
            field=models.ForeignKey(
                blank=True,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="variants",
                to="registry.basemodel",
            ),
        ),
        migrations.AddConstraint(
            model_name="basemodel",
            constraint=models.CheckConstraint(
                condition=models.Q(("variant_of", models.F("pk")), _negated=True), name="no_variant_of_itself"
            ),
        ),
        migrations.AddField(
            model_name="versionevaluation",
            name="variant",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="variant_measurements",
                to="registry.basemodel",
            ),
        ),
        migrations.RunSQL(NO_CHAINS, CHAINS),
    ]
