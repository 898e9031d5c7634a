"""The model: backbone, concept space, and their files."""
