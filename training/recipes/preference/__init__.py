"""Preference methods: the rows in reading order, the batches, and TRL's trainers for DPO, KTO and ORPO."""
