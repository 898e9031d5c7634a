"""The parts of scenes.py: what is in a clip, its pixels and its words; and what the truth tells of a model."""
