"""The `triptych` command. Each module is one command; `main` puts them together."""
