"""What writes files of this repository from the code; not in the wheel. `python -m tools` writes all of them."""
