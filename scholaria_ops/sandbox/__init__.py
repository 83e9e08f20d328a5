"""Real servers as local processes: the demo, the tests, verification and the rehearsals all use this room."""
