"""Files, pictures and videos: nothing here knows a network or a dataset."""
