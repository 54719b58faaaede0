"""Class maps as files: whole or absent, where their images lie, in colours, as polygons and as pages."""
