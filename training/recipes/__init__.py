"""Programs that train or convert: `python -m training.recipes.NAME`. The package imports none of them by itself."""
