"""The restyling models: where they come from, whether their files fit, and how they are loaded."""
