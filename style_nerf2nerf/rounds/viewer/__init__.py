"""The viewer of a run: its control panel, and the rendering of the scene."""
