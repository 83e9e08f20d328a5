"""Every setting of the product.

Names are those that Scholaria's operators already have in their ``.env``. A value comes from the process
environment, else from the ``.env`` file, else from its default; :attr:`Settings.provenance` says which.
Names that begin with ``BACKUP_`` and are not known are an error: a misspelt retention must not be ignored silently.
"""

from __future__ import annotations

from scholaria_ops.settings.load import ENV_FILE_VARIABLE, SECTIONS, Settings, load_settings, variable_names
from scholaria_ops.settings.sets import check_cron

__all__ = ["ENV_FILE_VARIABLE", "SECTIONS", "Settings", "check_cron", "load_settings", "variable_names"]
