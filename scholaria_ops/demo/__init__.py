"""The demonstration: real servers with sample data, and the product at work on them. Never used on real stores."""
