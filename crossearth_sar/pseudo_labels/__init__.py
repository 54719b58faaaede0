"""Labels for SAR images from teachers that see their optical twins."""
