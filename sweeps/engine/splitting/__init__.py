"""How rare is a collapse near the threshold, and how does it come about? Splitting over levels."""
