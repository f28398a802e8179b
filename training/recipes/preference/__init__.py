"""Preference methods: the rows in reading order, the batches, and TRL's trainers of DPO, KTO and ORPO."""
