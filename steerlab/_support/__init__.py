"""Shared by all other folders: errors, files, images, memory and progress."""
