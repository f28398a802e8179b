"""Versions and alias moves are written once; of a version only its status may change."""

from django.db import migrations

PROTECT = """
CREATE FUNCTION registry_version_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE TRIGGER immutable_rows BEFORE UPDATE ON registry_adapterversion
    FOR EACH ROW EXECUTE FUNCTION registry_version_is_immutable();
CREATE TRIGGER kept_rows BEFORE DELETE ON registry_adapterversion
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_adapterversion
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_rows BEFORE UPDATE OR DELETE ON registry_aliasmove
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_aliasmove
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE registry_adapterversion ENABLE ALWAYS TRIGGER immutable_rows;
ALTER TABLE registry_adapterversion ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_adapterversion ENABLE ALWAYS TRIGGER kept_table;
ALTER TABLE registry_aliasmove ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_aliasmove ENABLE ALWAYS TRIGGER kept_table;

CREATE SEQUENCE routing_table_generation;
"""
RELEASE = """
DROP SEQUENCE routing_table_generation;
DROP TRIGGER kept_table ON registry_aliasmove;
DROP TRIGGER kept_rows ON registry_aliasmove;
DROP TRIGGER kept_table ON registry_adapterversion;
DROP TRIGGER kept_rows ON registry_adapterversion;
DROP TRIGGER immutable_rows ON registry_adapterversion;
DROP FUNCTION registry_version_is_immutable();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial"), ("audit", "0002_append_only")]

    operations = [migrations.RunSQL(PROTECT, RELEASE)]
