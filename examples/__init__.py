"""Servers and data for the demo and the tests: a helpdesk, a scripted model, and support tickets.

They represent systems that a company already has. No service imports them; they are reached over HTTP.
"""
