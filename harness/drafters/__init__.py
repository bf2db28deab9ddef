"""Drafters: they propose tokens, which the target model then verifies."""
