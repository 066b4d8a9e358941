"""What the commands of an operator stand on: the audit, retention, the story of a run, reports."""
