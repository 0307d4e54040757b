"""Choosing kernel configurations by measured time.

``database`` keeps measurements in a file, ``measure`` makes them, ``tuner``
decides what to measure and what wins.
"""
