"""How a pilot gets onto nodes: one module per batch system."""
