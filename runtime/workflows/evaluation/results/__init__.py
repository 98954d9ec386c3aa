"""Records, tables and figures of an evaluation."""
