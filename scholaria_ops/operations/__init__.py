"""What the product does, as plain Python: every job of the pipeline and every command calls one of these."""
