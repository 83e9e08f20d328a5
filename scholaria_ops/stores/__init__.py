"""The three stores behind one seam (:mod:`scholaria_ops.stores.base`)."""
