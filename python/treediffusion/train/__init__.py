"""Training of both stages, and what is needed to stop and go on."""
