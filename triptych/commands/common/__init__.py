"""What several commands share: options, output, exit codes, filters, progress."""
