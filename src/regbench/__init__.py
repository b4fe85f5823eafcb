"""regbench: what does this regularizer do to my image classifier?"""
