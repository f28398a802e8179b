"""A version keeps the report of its intake, which its check completes; a base model its further names and norms."""

from django.contrib.postgres.fields import ArrayField
from django.db import migrations, models

FUNCTION = """
CREATE OR REPLACE FUNCTION registry_version_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['status'];
BEGIN
    IF OLD.signature = '' THEN
        changeable := changeable || ARRAY['signature'];
    END IF;
    IF OLD.status = 'checking' THEN
        changeable := changeable || ARRAY[{fields}];
    END IF;
    IF to_jsonb(NEW) - changeable IS DISTINCT FROM to_jsonb(OLD) - changeable THEN
        RAISE EXCEPTION 'version % is immutable: only its status may change', OLD.served_name
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status IN ('archived', 'rejected') AND NEW.status <> OLD.status THEN
        RAISE EXCEPTION 'version % is % for good', OLD.served_name, OLD.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status = 'ready' AND OLD.status <> 'ready' AND NEW.signature = '' THEN
        RAISE EXCEPTION 'version % has no signature', OLD.served_name USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0022_slugs_of_a_project")]

    operations = [
        migrations.AddField(
            "adapterversion",
            "report",
            models.JSONField(default=dict, help_text="what was sent, and what its check found and changed"),
        ),
        migrations.AddField(
            "basemodel",
            "weight_norms",
            models.JSONField(default=dict, editable=False, help_text="module name -> Frobenius norm"),
        ),
        migrations.AddField(
            "basemodel",
            "also_named",
            ArrayField(models.CharField(max_length=300), blank=True, default=list, size=None),
        ),
        migrations.RunSQL(
            FUNCTION.format(fields="'message', 'report'"),
            FUNCTION.format(fields="'message'"),
        ),
    ]
