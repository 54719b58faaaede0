"""Folders of images and published datasets, as samples of a task."""
