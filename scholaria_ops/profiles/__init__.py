"""What is known of the applications whose stores are backed up. Everything else discovers tables, keys and collections."""
