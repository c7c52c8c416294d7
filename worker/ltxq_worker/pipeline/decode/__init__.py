"""Decodes latents to frames in the host's memory."""
