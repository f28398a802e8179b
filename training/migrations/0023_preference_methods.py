from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0022_signed_erasures")]

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
                    ("dpo", "DPO (preference pairs)"),
                    ("kto", "KTO (good and bad answers)"),
                    ("orpo", "ORPO (preference pairs; experimental in TRL)"),
                ],
                default="lora",
                max_length=20,
            ),
        ),
    ]
