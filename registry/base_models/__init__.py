"""The files of a base model, brought into the models folder."""
