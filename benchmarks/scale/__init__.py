"""How pilot should do on machines that we do not have: the real decisions, driven by measured costs."""
