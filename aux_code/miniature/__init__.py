"""The embedded miniature benchmark: small data sets, drawn from a seed, in the real on-disk
formats.

    python -m aux_code.miniature ROOT [--seed 0] [--scale 1.0] [--only ucf101 vispr ...] [--force]
    [--contact_sheet PNG]

`plan` draws what is shown (labels, cameras, motions) as plain data; `looks`, `people`, `motions`,
`scenes`, `events`, `stills` and `drawing` turn it into images; `formats` and `render` write
files. Needs numpy, Pillow and PyAV, not torch.
"""
