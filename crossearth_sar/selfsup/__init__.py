"""DI3CL: self-supervised pre-training by contrast of whole images and regions in two views."""
