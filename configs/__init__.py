"""One file per kind of run; each defines get_config(arg='')."""
