"""How the small restyling models in `weights/restyler` are made: painted scenes, prompts, training."""
