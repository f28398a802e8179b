"""Four eyes, for raw SQL too: who may sign, what a signature is worth, and what a protected alias needs to move."""

from django.db import migrations

PROTECT = """
CREATE FUNCTION registry_approval_is_earned() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['status', 'decided_at', 'broken_by_id', 'review_due_at'];
    signed int;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'pending' THEN
            RAISE EXCEPTION 'an approval begins as pending' USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF to_jsonb(NEW) - changeable IS DISTINCT FROM to_jsonb(OLD) - changeable THEN
        RAISE EXCEPTION 'an approval keeps what it is about' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status <> OLD.status AND NOT (OLD.status, NEW.status) IN (
        ('pending', 'approved'), ('pending', 'rejected'), ('pending', 'lapsed'), ('pending', 'glass_broken'),
        ('approved', 'used'), ('approved', 'lapsed'), ('glass_broken', 'reviewed')
    ) THEN
        RAISE EXCEPTION 'an approval that is % cannot become %', OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT count(*) INTO signed FROM registry_signature
        WHERE approval_id = NEW.id AND bound = NEW.bound
        AND decision = CASE NEW.status WHEN 'reviewed' THEN 'review' ELSE 'approve' END;
    IF NEW.status <> OLD.status AND NEW.status IN ('approved', 'reviewed')
        AND signed < (CASE NEW.status WHEN 'reviewed' THEN 1 ELSE NEW.quorum END) THEN
        RAISE EXCEPTION 'an approval needs its signatures' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION registry_signer_is_another() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    asked registry_approval;
    opener bigint;
    maker bigint;
BEGIN
    SELECT * INTO asked FROM registry_approval WHERE id = NEW.approval_id;
    SELECT created_by_id INTO opener FROM registry_rollout WHERE id = asked.rollout_id;
    SELECT created_by_id INTO maker FROM registry_adapterversion WHERE id = asked.candidate_id;
    IF NEW.author_id IS DISTINCT FROM asked.author_id OR NEW.bound <> asked.bound
        OR asked.status NOT IN ('pending', 'glass_broken') THEN
        RAISE EXCEPTION 'a signature is of an open request as it was made' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.user_id IN (asked.author_id, asked.broken_by_id, opener, maker) THEN
        RAISE EXCEPTION 'an author cannot approve their own change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION registry_protected_alias() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE((OLD.policy->>'quorum')::int, 0) = 0 THEN
        RETURN NEW;
    END IF;
    IF NEW.version_id <> OLD.version_id
        AND NOT EXISTS (SELECT 1 FROM registry_aliasmove WHERE alias_id = OLD.id AND version_id = NEW.version_id)
        AND NOT EXISTS (
            SELECT 1 FROM registry_approval WHERE alias_id = OLD.id AND kind = 'promotion'
            AND candidate_id = NEW.version_id AND status IN ('approved', 'used', 'glass_broken', 'reviewed')
        ) THEN
        RAISE EXCEPTION 'alias % is protected: it moves by an approved rollout', OLD.name
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.policy <> OLD.policy AND NOT EXISTS (
        SELECT 1 FROM registry_approval WHERE alias_id = OLD.id AND kind = 'alias_policy'
        AND policy = NEW.policy AND status = 'approved'
    ) THEN
        RAISE EXCEPTION 'alias % is protected: its policy changes by an approval', OLD.name
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION registry_move_is_real() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version_id <> (SELECT version_id FROM registry_alias WHERE id = NEW.alias_id) THEN
        RAISE EXCEPTION 'the history names what the alias serves' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER earned BEFORE INSERT OR UPDATE ON registry_approval
    FOR EACH ROW EXECUTE FUNCTION registry_approval_is_earned();
CREATE TRIGGER kept_rows BEFORE DELETE ON registry_approval FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_approval
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER another BEFORE INSERT ON registry_signature
    FOR EACH ROW EXECUTE FUNCTION registry_signer_is_another();
CREATE TRIGGER kept_rows BEFORE UPDATE OR DELETE ON registry_signature
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_signature
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER protected BEFORE UPDATE ON registry_alias
    FOR EACH ROW EXECUTE FUNCTION registry_protected_alias();
CREATE TRIGGER real BEFORE INSERT ON registry_aliasmove
    FOR EACH ROW EXECUTE FUNCTION registry_move_is_real();
ALTER TABLE registry_aliasmove ENABLE ALWAYS TRIGGER real;
ALTER TABLE registry_approval ENABLE ALWAYS TRIGGER earned;
ALTER TABLE registry_approval ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_approval ENABLE ALWAYS TRIGGER kept_table;
ALTER TABLE registry_signature ENABLE ALWAYS TRIGGER another;
ALTER TABLE registry_signature ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_signature ENABLE ALWAYS TRIGGER kept_table;
ALTER TABLE registry_alias ENABLE ALWAYS TRIGGER protected;
"""
RELEASE = """
DROP TRIGGER real ON registry_aliasmove;
DROP FUNCTION registry_move_is_real();
DROP TRIGGER protected ON registry_alias;
DROP TRIGGER kept_table ON registry_signature;
DROP TRIGGER kept_rows ON registry_signature;
DROP TRIGGER another ON registry_signature;
DROP TRIGGER kept_table ON registry_approval;
DROP TRIGGER kept_rows ON registry_approval;
DROP TRIGGER earned ON registry_approval;
DROP FUNCTION registry_protected_alias();
DROP FUNCTION registry_signer_is_another();
DROP FUNCTION registry_approval_is_earned();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0003_approvals"), ("audit", "0004_kept_checkpoints")]

    operations = [migrations.RunSQL(PROTECT, RELEASE)]
