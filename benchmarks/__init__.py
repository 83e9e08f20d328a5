"""Measurements on real servers: this product against the same work done by hand and by the bare tools. Run ``make bench``."""
