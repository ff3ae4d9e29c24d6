"""How a pilot gets onto nodes, how a pool works, how one task runs; knows nothing of the store."""
