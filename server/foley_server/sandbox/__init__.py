"""Decodes untrusted media in a subprocess with limited resources."""
