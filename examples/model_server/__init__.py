"""A scripted model behind the HTTP APIs of the providers, so that the real client code runs without credentials.

It reads the prompt and answers by small honest rules, the same answer to the same prompt. It is not a
language model, and knows only what the prompt says.
"""
