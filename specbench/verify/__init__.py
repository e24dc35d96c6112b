"""A pre-flight: is the set-up sane? A broken one looks like a poor draft, and this room tells the two apart."""
