"""One file per ablation; each defines get_config and sweep(arg='')."""
