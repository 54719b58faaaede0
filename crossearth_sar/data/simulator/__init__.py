"""A physical SAR simulator: land cover, backscatter, speckle, scenes."""
