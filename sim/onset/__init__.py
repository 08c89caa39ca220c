"""Did it collapse, and when? The measured front, the label of a run, and the detector."""
