"""Which tables do the pages of results hold? Functions from committed stores to Markdown."""
