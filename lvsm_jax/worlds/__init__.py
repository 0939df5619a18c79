"""Random scenes made by a JAX program: pictures, cameras and depth from a key, and nothing else.

Axes are OpenCV's, as everywhere: the floor is at positive y. Lengths are metres, roughly; only
their ratios matter. Shapes use `s` scenes, `n` views, `h w` pixels, `p` solids, `r` rays.
"""
