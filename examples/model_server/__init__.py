"""A scripted model behind the HTTP APIs of the providers, so that the real client code runs without credentials.

It reads the prompt and answers by small honest rules, the same answer to the same prompt. It is no
language model and pretends to no knowledge beyond what the prompt says.
"""
