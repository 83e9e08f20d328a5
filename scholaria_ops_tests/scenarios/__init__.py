"""The recovery scenarios of docs/recovery: a real stack is broken in that way and brought back while an application writes."""
