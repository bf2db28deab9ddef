"""Our methods' arithmetic against conformance files: inputs, and what the papers' equations make of
them.
"""
