"""More than one process: big sets of images cut into units, and Ray to run them and the server."""
