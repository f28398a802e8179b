"""Programs that train and convert: `python -m training.recipes.NAME`. Nothing is imported until one is named."""
