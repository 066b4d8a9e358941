"""What the author of a tool uses. Import it from `triptych`."""
