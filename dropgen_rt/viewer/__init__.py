"""The page that ``infer --report`` writes: template, style, script, and the viewer that fetch.py brings in.

niivue is not in the repository: ``make viewer`` or the package's build puts ``niivue.umd.js`` here.
"""
