"""A page in the browser that shows what a model makes of photographs, from where one stands.

`python -m lvsm_jax.viewer` starts it; docs/viewer.md says what is on it. One session renders for
all visitors:

    geometry   the page's frame, a window's camera, which photograph is nearest. Pure functions
    renderer   one thread; of each visitor's wishes the newest, first coarse and then full
    gallery    the scene's photographs and which of them are in use, the same for all visitors
    uploads    photographs from visitors, which are not to be trusted
    visitor    the page of one visitor
    server     viser's server with its bounds, and who is there
"""
