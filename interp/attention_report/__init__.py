"""The page of attention surveys, surgery and twins: sections made of what `interp.attention` measured."""
