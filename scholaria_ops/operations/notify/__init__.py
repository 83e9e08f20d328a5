"""Tell people: which events are worth a message, what was told already, whom to tell, and whether it arrived."""
