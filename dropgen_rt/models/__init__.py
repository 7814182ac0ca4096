"""The demo model, shipped with the package; README.md beside it tells how it was made."""
