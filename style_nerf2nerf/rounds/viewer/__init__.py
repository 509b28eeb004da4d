"""What the viewer offers for a run: the control panel, and what is shown of the scene."""
