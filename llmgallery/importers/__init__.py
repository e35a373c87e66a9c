"""Other programs' configurations to model files of ours. A file for each source; recognise.py lists them."""
