"""Checks of the methods' arithmetic against conformance files.

A file holds inputs, and the results that the papers' equations give for them.
"""
