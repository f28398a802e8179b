"""The signer: the process that verifies approvers and inserts their signatures by a database role of its own."""
