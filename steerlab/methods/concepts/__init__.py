"""Concepts of a set of states, how training moves them, and steering from one to another."""
