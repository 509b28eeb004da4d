"""The rounds of a run: reconstruct the field, then repeatedly restyle its views and retrain it on them.

The life of a round:

1. `schedule` decides at which training step it begins and with which settings.
2. `restyling` renders the views that are restyled (colour and depth) and has the restyler paint them together.
3. `storage` keeps them as a nerfstudio dataset in `restyled/round_NN`, whole or not at all.
4. `losses` compares whole renders with the restyled views while the trainer makes its steps.
5. `reports` measures, and `previews` draws before | restyled | after, when the last of these steps is done;
   `report_page` puts all of it into report.html.

`runner` is the state machine that calls them between two steps. In the viewer, `panel` has the controls, `workbench`
arranges nerfstudio's viewer around them, `shown` renders what they say within the time that `render_budget` leaves,
`interpolation` goes part of the way from the photos' field to the restyled one, and a shape dragged over the scene
(`shape_in_scene`) becomes masks (`mask_shapes`).
"""
