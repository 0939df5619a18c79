"""A page in the browser that renders a scene of photographs from wherever the visitor stands.

`lvsm view` starts it; docs/viewer.md describes the page. One session renders for all visitors, and
one more for each place of photographs that a visitor brings:

    geometry     the page's frame, a window's camera, the nearest photograph; pure functions
    renderer     one thread that renders each visitor's newest request, first coarse and then full
    gallery      the photographs of a world and which of them are in use, the same for all visitors
    worlds       the scene and visitors' own places, and what all visitors share
    uploads      photographs from visitors, which are not trusted
    drops        what becomes of them: part of the scene, or a place after cameras were found
    jobs         long work of a visitor: searches for cameras, videos
    viewpoint    where a visitor stands
    photographs  the gallery as one visitor sees it, in 3D and beside the render
    controls, thumbnails, paths, comparison   the tabs of the panel
    visitor      the page of one visitor
    page.js      what viser's page lacks, in the visitor's browser
    access, guard, messages, pace   who comes in, and what is let through
    server       viser's server with limits, and the visitors
"""
