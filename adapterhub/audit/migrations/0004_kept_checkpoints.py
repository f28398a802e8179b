"""Checkpoints are written once, as events are."""

from django.db import migrations

REFUSE = """
CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON audit_checkpoint
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON audit_checkpoint
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE audit_checkpoint ENABLE ALWAYS TRIGGER append_only_rows;
ALTER TABLE audit_checkpoint ENABLE ALWAYS TRIGGER append_only_table;
"""
ALLOW = """
DROP TRIGGER append_only_rows ON audit_checkpoint;
DROP TRIGGER append_only_table ON audit_checkpoint;
"""
REVOKE = """
DO $$
DECLARE grantee_name text;
BEGIN
    FOR grantee_name IN
        SELECT DISTINCT grantee FROM information_schema.role_table_grants
        WHERE table_name = 'audit_checkpoint' AND grantee <> current_user AND grantee <> 'PUBLIC'
    LOOP
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON audit_checkpoint FROM %I', grantee_name);
    END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0003_checkpoints")]

    operations = [migrations.RunSQL(REFUSE, ALLOW), migrations.RunSQL(REVOKE, migrations.RunSQL.noop)]
