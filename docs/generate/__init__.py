"""Write the reference pages that follow from the code, so that they cannot say anything else.

`pages.py` lists them. `site_links.py` is a hook of the site, and needs MkDocs.
"""
