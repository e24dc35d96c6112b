"""What lies in run folders: `fields` are records read from JSON, `rows` lines of a run, `stored` is run.json.

Plain values in, checked values out; ValueError says what is wrong, and the caller, who knows the place, says where.
"""
