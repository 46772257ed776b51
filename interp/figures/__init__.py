"""Every Plotly call of this project, one file per subject. Functions take plain arrays and records and return figures.

Plotly is imported when a figure is made, not when these modules are.
"""
