"""`spear report`: a run or a whole recipe as one HTML page."""
