"""The adapters that ship: each is a tool, or makes one from the options of triptych.toml."""
