"""The rounds of a run: reconstruct the field, then repeatedly restyle its views and retrain it on them.

The life of a round:

1. `schedule` determines the training step at which it begins, and its settings.
2. `restyling` renders the views (colour and depth) and passes them to the restyler, which restyles them together.
3. `storage` writes the result atomically as a nerfstudio dataset, `restyled/round_NN`.
4. `losses` compares renders with the restyled views in each training step.
5. After the last step, `report.reports` measures the round, `report.previews` draws before | restyled | after, and
   `report.page` writes report.html.

`runner` is the state machine that calls these modules between training steps. For the viewer, `viewer.panel` contains
the controls, `viewer.workbench` arranges nerfstudio's viewer around them, `viewer.shown` renders the selected field
within the time set by `viewer.render_budget`, `viewer.interpolation` interpolates between the fields before and after
restyling, and `mask_shapes` computes masks from a shape placed in the scene (`viewer.shape_in_scene`).
"""
