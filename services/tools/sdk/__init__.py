"""The SDK for authors of tools. Import its public names from `triptych`."""
