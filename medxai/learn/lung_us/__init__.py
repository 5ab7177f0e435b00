"""Lung ultrasound: covid, bacterial pneumonia or healthy, from stills and clips, by the published protocol."""
