"""The commands: each wires records to renderers, and imports what it needs when it is called."""
