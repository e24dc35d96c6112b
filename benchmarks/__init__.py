"""Performance of specbench as ratios against named peers. `python -m benchmarks --list` says which there are."""
