"""A token of scope admin works once the signer approved it, and the application's role cannot go round it."""

from django.db import migrations

APPROVED = """
CREATE FUNCTION registry_admin_token_is_approved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['last_used_at', 'revoked_at'];
BEGIN
    IF has_table_privilege('registry_signature', 'INSERT') THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NEW.approved_at IS NOT NULL OR NEW.approved_by_id IS NOT NULL
            OR ('admin' = ANY(NEW.scopes) AND NOT NEW.needs_approval) THEN
            RAISE EXCEPTION 'a token of scope admin begins without approval' USING ERRCODE = 'restrict_violation';
        END IF;
    ELSIF (NEW.approved_at, NEW.approved_by_id) IS DISTINCT FROM (OLD.approved_at, OLD.approved_by_id) THEN
        RAISE EXCEPTION 'a token is approved by the signer' USING ERRCODE = 'restrict_violation';
    ELSIF 'admin' = ANY(NEW.scopes || OLD.scopes) AND (
        to_jsonb(NEW) - changeable IS DISTINCT FROM to_jsonb(OLD) - changeable
        OR (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL)
    ) THEN
        RAISE EXCEPTION 'a token of scope admin stays as it was approved' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER approved BEFORE INSERT OR UPDATE ON accounts_apitoken
    FOR EACH ROW EXECUTE FUNCTION registry_admin_token_is_approved();
ALTER TABLE accounts_apitoken ENABLE ALWAYS TRIGGER approved;
"""
UNDO = """
DROP TRIGGER approved ON accounts_apitoken;
DROP FUNCTION registry_admin_token_is_approved();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0025_rollout_status_reason"), ("accounts", "0009_invitations")]

    operations = [migrations.RunSQL(APPROVED, UNDO)]
