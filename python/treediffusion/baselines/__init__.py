"""What a tree model has to beat: flat and hierarchical clusterings, and an unconditional denoiser.

Ward and k-means (`flat`) and their merges (`dendrogram`); VAE and LadderVAE as trees that do not
branch (`chain`); DeepECT, an autoencoder under a growing tree of centres; L2H, the clusters of a
flat model merged by what they are mistaken for (`logits`); vanilla DDPM and DDIM (`blank`). They
are all called by name through `methods`.
"""
