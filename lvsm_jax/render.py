"""The program `python -m lvsm_jax.render`; see `lvsm_jax.render_scene`.

As a module it must not be imported: `lvsm_jax.render` is the function of `lvsm_jax.cache`.
"""

if __name__ != "__main__":
    raise ImportError("lvsm_jax.render is a function; this file only runs as a program")

from lvsm_jax.render_scene import main

main()
