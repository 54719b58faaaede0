"""Reading SAR image and label files: formats, windows, values, what is missing in them."""
