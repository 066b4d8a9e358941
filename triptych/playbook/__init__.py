"""The playbook language: YAML files, expressions and templates, and the checks of plans."""
