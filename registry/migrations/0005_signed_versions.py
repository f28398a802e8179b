"""A version carries what its configuration says, what its check found, and a signature made once: when it is ready."""

from django.db import migrations, models

PROTECT = """
CREATE OR REPLACE FUNCTION registry_version_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['status'];
BEGIN
    IF OLD.signature = '' THEN
        changeable := changeable || ARRAY['signature'];
    END IF;
    IF OLD.status = 'checking' THEN
        changeable := changeable || ARRAY['message'];
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
RELEASE = """
CREATE OR REPLACE FUNCTION registry_version_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF to_jsonb(NEW) - 'status' IS DISTINCT FROM to_jsonb(OLD) - 'status' THEN
        RAISE EXCEPTION 'version % is immutable: only its status may change', OLD.served_name
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status IN ('archived', 'rejected') AND NEW.status <> OLD.status THEN
        RAISE EXCEPTION 'version % is % for good', OLD.served_name, OLD.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0004_four_eyes")]

    operations = [
        migrations.AddField("adapterversion", "config", models.JSONField(default=dict)),
        migrations.AddField("adapterversion", "message", models.TextField(blank=True, default="")),
        migrations.AddField("adapterversion", "signature", models.TextField(blank=True, default="")),
        migrations.RunSQL(PROTECT, RELEASE),
    ]
