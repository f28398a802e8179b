"""Conversion of adapters that other tools wrote to PEFT's two files, on the machine of whoever sends them."""
