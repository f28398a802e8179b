"""History is written once: triggers that even the owner's session settings do not switch off, and no rights."""

from django.db import migrations

REFUSE = """
CREATE FUNCTION adapterhub_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: history is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON audit_auditevent
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON audit_auditevent
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE audit_auditevent ENABLE ALWAYS TRIGGER append_only_rows;
ALTER TABLE audit_auditevent ENABLE ALWAYS TRIGGER append_only_table;
"""
ALLOW = """
DROP TRIGGER append_only_rows ON audit_auditevent;
DROP TRIGGER append_only_table ON audit_auditevent;
DROP FUNCTION adapterhub_refuse();
"""

# Every role but the owner; which roles exist is the installation's choice.
REVOKE = """
DO $$
DECLARE grantee_name text;
BEGIN
    FOR grantee_name IN
        SELECT DISTINCT grantee FROM information_schema.role_table_grants
        WHERE table_name = 'audit_auditevent' AND grantee <> current_user AND grantee <> 'PUBLIC'
    LOOP
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON audit_auditevent FROM %I', grantee_name);
    END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [
        migrations.RunSQL(REFUSE, ALLOW),
        migrations.RunSQL(REVOKE, migrations.RunSQL.noop),
    ]
