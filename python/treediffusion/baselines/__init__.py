"""Clusterings that a tree model has to beat, on raw pixels."""
