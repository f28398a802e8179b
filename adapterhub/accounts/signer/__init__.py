"""The signer: the process that verifies people and carries out what they sign, by a database role of its own."""
