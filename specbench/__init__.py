"""Should we turn speculative decoding on, on our traffic, with this draft, at which draft length, how sure are we?"""

__version__ = "0.1.0"
