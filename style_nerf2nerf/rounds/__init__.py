"""The rounds of a run: reconstruct the field, then repeatedly restyle its views and retrain it on them.

The life of a round:

1. `schedule` decides at which training step it begins and with which settings.
2. `restyling` renders the views that are restyled (colour and depth) and has the restyler paint them together.
3. `storage` keeps them as a nerfstudio dataset in `restyled/round_NN`, whole or not at all.
4. `losses` compares whole renders with the restyled views while the trainer makes its steps.
5. `reports` measures, and `previews` draws before | restyled | after, when the last of these steps is done.

`runner` is the state machine that calls them between two steps; `panel` and `shown` are its side in the viewer.
"""
