"""Second stage: the denoiser, what it is trained on, and how it draws images."""
