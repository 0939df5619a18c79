"""A page in the browser that renders a scene of photographs from wherever the visitor stands.

`lvsm view` starts it; docs/viewer.md describes the page. One session renders for all visitors:

    geometry     the page's frame, a window's camera, the nearest photograph; pure functions
    renderer     one thread that renders each visitor's newest request, first coarse and then full
    gallery      the scene's photographs and which of them are in use, the same for all visitors
    uploads      photographs from visitors, which are not trusted
    photographs  the gallery as one visitor sees it, in 3D and beside the render
    visitor      the page of one visitor
    server       viser's server with limits, and the visitors
"""
