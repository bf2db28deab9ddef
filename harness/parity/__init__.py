"""Checks of our models against arrays that their original implementations returned."""
