"""A bundle behind HTTP: FastAPI over one engine thread, without torch."""
