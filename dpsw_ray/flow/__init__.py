"""PUBLIC WING: a Release becomes particles. Nothing here accepts private data; every step is free."""
