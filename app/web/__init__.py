"""`headwarp app`: the studio in a browser; see docs/studio.md.

command   the flags, and the server
page      what stands where, and what happens on which event
studio    one `Studio` for the server, one `Session` for each open page: portrait, files, the run that works for it
edit, motion, fitting     what the three tabs do; overlays and curves draw for them
sliders   names, ranges and groups of all sliders, and the presets
panel.js, panel.css       the Edit tab's controls, which Gradio's own are too slow and too large for
"""
