"""The index: filling, keeping and searching a collection of videos."""
