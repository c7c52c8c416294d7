"""Writes frames and samples to files: MP4, poster, spritesheet, sidecar."""
