"""Packages of an artifact for the build systems that apps use: one module per format.

``effc.packages.formats.export`` is ``effc.export(...)`` and ``effc export``.
"""
