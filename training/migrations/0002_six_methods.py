from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0001_initial")]

    operations = [
        migrations.AlterField(
            model_name="trainingrun",
            name="method",
            field=models.CharField(
                choices=[
                    ("lora", "LoRA"),
                    ("qlora", "QLoRA (4-bit base)"),
                    ("dora", "DoRA"),
                    ("adalora", "AdaLoRA"),
                    ("galore", "GaLore (all weights)"),
                    ("full", "Full fine-tuning"),
                ],
                default="lora",
                max_length=20,
            ),
        ),
    ]
