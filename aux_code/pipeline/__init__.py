"""The main job as data: methods, the command lines they need and in which order, what is finished,
running the rest."""
