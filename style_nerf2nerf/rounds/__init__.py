"""The rounds of a run: reconstruct the field, then repeatedly restyle its views and retrain it on them.

The life of a round:

1. `schedule` decides at which training step it begins and with which settings.
2. `restyling` renders the views that are restyled (colour and depth) and has the restyler paint them together.
3. `storage` keeps them as a nerfstudio dataset in `restyled/round_NN`, whole or not at all.
4. `losses` compares whole renders with the restyled views while the trainer makes its steps.
5. `report.reports` measures, and `report.previews` draws before | restyled | after, when the last of these steps is
   done; `report.page` puts all of it into report.html.

`runner` is the state machine that calls them between two steps. In the viewer, `viewer.panel` has the controls,
`viewer.workbench` arranges nerfstudio's viewer around them, `viewer.shown` renders the selected field within the time
that `viewer.render_budget` leaves, `viewer.interpolation` computes fields between the photos' one and the restyled one,
and a shape dragged over the scene (`viewer.shape_in_scene`) becomes masks (`mask_shapes`).
"""
