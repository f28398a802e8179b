from django.db import migrations


class Migration(migrations.Migration):
    """Write down the scheduler of runs from before it could be chosen, so that a resume and a clone keep it."""

    dependencies = [("training", "0017_validation_dataset")]

    operations = [
        migrations.RunSQL(
            """
            UPDATE training_trainingrun SET hyperparameters = hyperparameters || '{"scheduler": "cosine"}'
            WHERE NOT jsonb_exists(hyperparameters, 'scheduler')
            """,
            migrations.RunSQL.noop,
        )
    ]
