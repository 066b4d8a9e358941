"""Check that the project's prose is plain English: short sentences, no idioms, docstrings in the imperative.

`texts` reads prose out of files, `rules` finds what is wrong with it, `__main__` prints the findings.
"""
