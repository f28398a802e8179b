"""Each event of the audit trail puts its deliveries into the outbox, in the transaction of its change."""

from django.db import migrations

FILL = """
CREATE FUNCTION webhooks_fill_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO webhooks_delivery (webhook_id, event_id, status, attempts, next_at, created_at)
    SELECT id, NEW.id, 'pending', 0, now(), now() FROM webhooks_webhook
    WHERE project_id = NEW.project_id AND revoked_at IS NULL
      AND (NEW.tag = ANY (events) OR split_part(NEW.tag, ':', 1) || ':*' = ANY (events));
    RETURN NULL;
END $$;

CREATE TRIGGER fill_outbox AFTER INSERT ON audit_auditevent
    FOR EACH ROW EXECUTE FUNCTION webhooks_fill_outbox();
"""
EMPTY = """
DROP TRIGGER fill_outbox ON audit_auditevent;
DROP FUNCTION webhooks_fill_outbox;
"""


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0001_initial"), ("audit", "0002_append_only")]

    operations = [migrations.RunSQL(FILL, EMPTY)]
