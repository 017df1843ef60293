"""From raw data to atomic files (`.inter`, `.item`, `images/`). May import numpy and pillow only: no recbole, no torch."""
