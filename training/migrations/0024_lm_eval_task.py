from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0023_preference_methods")]

    operations = [
        migrations.AddField(
            model_name="evaluation",
            name="task",
            field=models.CharField(blank=True, default="", help_text="A task of lm-eval.", max_length=100),
        ),
    ]
