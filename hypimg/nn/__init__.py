"""Modules on top of the geometry: spaces, and layers that work in them. Imports torch and hypimg.geometry alone."""
