"""PUBLIC WING: a generator network trained on releases. Nothing here accepts private data; every step is free."""
