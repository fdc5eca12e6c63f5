"""The paper's evaluation on rendered test clips; see `docs/quality.md`.

scenes -> frames -> Triton -> classes, envelope      `video2rms`, `onsets`
       -> sound -> envelope, prompt -> Triton -> sound      `rms2sound`, `timbre`, `frechet`
                                                    `report`: tables, JSON, targets; `plots`
`steps`: fewer steps against quality; `figures`: the paper's figures 11 and 12
"""
