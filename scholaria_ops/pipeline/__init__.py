"""Everything that speaks Dagster: assets, checks, jobs, sensors, resources, and the runner of the command line."""
